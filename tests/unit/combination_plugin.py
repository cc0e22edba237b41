"""A family of small blocks, and an adapter that is no LoRA: for the tests of what goes together."""

from __future__ import annotations

from typing import ClassVar

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.nn import functional

from difftrain import Adapter, hookimpl
from difftrain.testing import TinyFamily, TinyFlavour

WIDTH, BLOCKS = 128, 2
SHARED = ("to_gate", "to_value")


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_gate, self.to_value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        return functional.silu(self.to_gate(hidden)) * self.to_value(hidden)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.gated = Gated()

    def forward(self, hidden):
        return hidden + self.gated(hidden)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.words, self.leave = nn.Linear(3, WIDTH), nn.Linear(9, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.recomputes = False

    def forward(self, noisy, sigma, text):
        words = self.words(torch.cat([text, sigma[:, None].to(text.dtype)], dim=1))
        hidden = self.enter(noisy.flatten(2).transpose(1, 2)) + words[:, None]
        for block in self.blocks:
            if self.recomputes and torch.is_grad_enabled():
                hidden = torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False)
            else:
                hidden = block(hidden)
        return self.leave(hidden).transpose(1, 2).unflatten(2, noisy.shape[2:])


class BlocksFamily(TinyFamily):
    """As :class:`TinyFamily`, but of blocks that can be compiled, swapped, recomputed and fused."""

    name: ClassVar[str] = "blocks"

    def empty_denoiser(self, location):
        with init_empty_weights():
            return Denoiser()

    def denoiser_weights(self, location):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield from Denoiser().state_dict().items()

    def keep_unquantized(self):
        return ("enter", "words", "leave")

    def blocks(self, denoiser):
        return list(denoiser.blocks)

    def adapter_targets(self, denoiser):
        return [name for group in self.shared_input_linears(denoiser) for name in group]

    def shared_input_linears(self, denoiser):
        return [tuple(f"blocks.{index}.gated.{name}" for name in SHARED) for index in range(BLOCKS)]

    def enable_checkpointing(self, denoiser):
        denoiser.recomputes = True

    def predict(self, denoiser, model_input):
        return denoiser(model_input.noisy, model_input.sigma, model_input.text)


class BlocksFlavour(TinyFlavour):
    family: ClassVar[str] = "blocks"


class Scaled(nn.Module):
    """A linear layer whose outputs are scaled."""

    def __init__(self, inner, dtype):
        super().__init__()
        self.inner = inner
        self.outputs = nn.Parameter(torch.ones(inner.out_features, dtype=dtype))

    def forward(self, input):
        return self.inner(input) * self.outputs


class OutputScales(Adapter):
    """One trained factor for each output of each target; made without peft."""

    name: ClassVar[str] = "output-scales"

    def attach(self, denoiser, targets, dtype):
        for name in targets:
            denoiser.set_submodule(name, Scaled(denoiser.get_submodule(name), dtype))

    def state(self, denoiser):
        return {name: part.detach() for name, part in denoiser.named_parameters() if name.endswith(".outputs")}

    def load_state(self, denoiser, state):
        raise NotImplementedError

    def write(self, weights, folder, prefix):
        raise NotImplementedError

    def read(self, path, prefix):
        raise NotImplementedError


@hookimpl
def difftrain_model_families():
    return (BlocksFamily,)


@hookimpl
def difftrain_model_flavours():
    return (BlocksFlavour,)


@hookimpl
def difftrain_adapters():
    return (OutputScales,)
