"""Shared by both training scripts: a wall-clock budget, averaged weights, resumable state."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHARD_BYTES = 15_000_000
"""State is split into files of at most this size."""
LONG_AGO = 10_000
"""Number of past steps that a restored average counts as having."""


class Budget:
    """How much of this script's time is used, counted from its creation."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds used so far."""
        return time.monotonic() - self.start


def learning_rate(step: int, fraction: float, *, peak: float, warmup: int, decay_from: float) -> float:
    """Return a rate: linear warm-up by steps, then constant, then a cosine to 2 % over the last part of the budget.

    Args:
        step: Counted from the start of this call, whose optimizer is new and warms up.
        fraction: Used share of the budget.
        peak: Highest rate.
        warmup: Steps.
        decay_from: Fraction at which the decay begins; 1 is no decay (another call will follow).
    """
    rate = peak * min(1.0, (step + 1) / warmup)
    if fraction <= decay_from or decay_from >= 1:
        return rate
    part = (fraction - decay_from) / (1 - decay_from)
    return rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))


class Average:
    """Exponential moving average of a module's parameters, in float32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.average = [parameter.detach().clone().float() for parameter in self.parameters]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights and the averaged ones; doing it twice changes nothing."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def build_optimizers(name: str, student: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return AdamW for all weights, or Muon for the matrices of the transformer's blocks and AdamW for the rest.

    Each group's ``factor`` times the scheduled rate is its learning rate.

    Source:
        Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon; scaled to AdamW's size of update after
        arXiv:2502.16982, section 2.2.
    """
    matrices, others = [], []
    for key, parameter in student.named_parameters():
        is_block = key.startswith("transformer.") and "transformer_blocks." in key
        (matrices if name == "muon" and is_block and parameter.ndim == 2 else others).append(parameter)
    groups = [{"params": others, "factor": 1.0}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    ]
    if matrices:
        groups = [{"params": matrices, "factor": 1.0}]
        optimizers.append(torch.optim.Muon(groups, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def save_state(
    folder: Path, name: str, modules: dict[str, nn.Module], average: Average, facts: dict[str, object]
) -> None:
    """Write `name-K.safetensors` shards and `name.json`: weights float32, averages bfloat16, no optimizer.

    `average` must have been built over the modules in the same order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    names = []
    for part, module in modules.items():
        tensors.update({f"raw.{part}.{key}": value.float() for key, value in module.state_dict().items()})
        names += [f"{part}.{key}" for key, _ in module.named_parameters()]
    tensors.update({f"ema.{key}": value.bfloat16() for key, value in zip(names, average.average, strict=True)})
    shard: dict[str, Tensor] = {}
    size = index = 0
    for old in folder.glob(f"{name}-*.safetensors"):
        old.unlink()
    for key, value in tensors.items():
        plain = value.detach().cpu().contiguous().clone()
        if size + plain.nbytes > SHARD_BYTES and shard:
            save_file(shard, folder / f"{name}-{index}.safetensors")
            shard, size, index = {}, 0, index + 1
        shard[key] = plain
        size += plain.nbytes
    save_file(shard, folder / f"{name}-{index}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1))


def read_state(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return all tensors and facts of a state; empty if there is none."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        tensors.update(load_file(path))
    facts = folder / f"{name}.json"
    return tensors, json.loads(facts.read_text()) if tensors and facts.is_file() else {}


def restore(tensors: dict[str, Tensor], modules: dict[str, nn.Module], average: Average) -> None:
    """Load a saved state into modules and average."""
    names = []
    for part, module in modules.items():
        prefix = f"raw.{part}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        names += [f"{part}.{key}" for key, _ in module.named_parameters()]
    average.steps = LONG_AGO
    for key, value in zip(names, average.average, strict=True):
        value.copy_(tensors[f"ema.{key}"])


def load_averaged(tensors: dict[str, Tensor], modules: dict[str, nn.Module]) -> None:
    """Load only the averaged weights into modules."""
    for part, module in modules.items():
        prefix = f"ema.{part}."
        averaged = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(averaged, strict=False)


def prepare_device(name: str | None, *, one_shape: bool) -> torch.device:
    """Return the device, excluding attention kernels that crash; time convolutions first if all have one shape."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = one_shape
    return device
