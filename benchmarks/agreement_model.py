"""What `agreement.py` trains: FLUX.1 with random weights that pass errors on like trained ones, and four fixed batches.

Weights of N(0, 0.02) everywhere, as `one_step.py` takes them, are right for timing alone: their queries and keys are
almost zero, so attention is even, and every block is the same. Here each matrix keeps the size of what it is given,
and the outputs that are added to the residual stream are scaled down by the root of their number.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.3 (residual layers).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import ClassVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional

from difftrain.types import Batch, ModelLocation
from difftrain_flux.family import FluxFamily

BATCHES = 4
ADDED = re.compile(r".*(to_out\.0|to_add_out|ff\.net\.2|ff_context\.net\.2|blocks\.\d+\.proj_out)\.weight")
"""Layers whose output is added to the residual stream; not the model's own ``proj_out``."""
AFTER_NORM = re.compile(r".*(attn\.(to_[qkv]|add_[qkv]_proj)|ff(_context)?\.net\.0\.proj|proj_mlp)\.weight")
"""Layers whose input comes from a modulated norm."""
BRANCH = 8.0
"""Strength of the blocks: with it 57 of them make the residual stream 2.7 times as large as it was (its variance 7
times), so most of what the output layer sees comes from them; an error of the input grows by less than 1.1 (CPU, width
128, docs/log.md)."""
OUTLIER = 20.0
"""Size of an outlier feature in others' sizes (Dettmers et al., LLM.int8(), arXiv:2208.07339, section 4)."""


class TrainedLike(FluxFamily):
    """FLUX.1 in its published sizes; each tensor follows from its name, and is made where it is used."""

    sizes: ClassVar[dict[str, object]] = {}
    """What differs from the published sizes."""
    outliers: ClassVar[int] = 0
    """Features that every modulated norm makes 20 times as large; the layers after it undo that."""
    text: ClassVar[dict[str, int]] = {"tokens": 512, "width": 4096, "pooled": 768}

    def empty_denoiser(self, location: ModelLocation) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        with init_empty_weights():
            return FluxTransformer2DModel(guidance_embeds=True, **self.sizes)

    def denoiser_weights(self, location: ModelLocation) -> Iterator[tuple[str, Tensor]]:
        model = self.empty_denoiser(location)
        branches = 2 * len(model.transformer_blocks) + len(model.single_transformer_blocks)
        tensors = model.state_dict()
        self._check_names(tensors)
        for name, tensor in tensors.items():
            yield name, self._weight(name, tensor.shape, branches)

    def _check_names(self, names: dict[str, Tensor]) -> None:
        # a renamed layer would silently be scaled like any other
        assert any(map(ADDED.fullmatch, names)), "diffusers has renamed the layers that end a branch"
        assert any(map(AFTER_NORM.fullmatch, names)), "diffusers has renamed the layers after a norm"

    def _weight(self, name: str, shape: torch.Size, branches: int) -> Tensor:
        if name == "proj_out.weight":  # so that the residual stream carries the input to the output
            embedder = self._weight("x_embedder.weight", shape[::-1], branches)
            return embedder.t() * (shape[0] / shape[1])
        if len(shape) == 1:
            value = torch.full(shape, 0.0 if name.endswith("bias") else 1.0, device=place())
            return self._with_outliers(name, value)
        value = normal(name, shape) / shape[1] ** 0.5
        if ADDED.fullmatch(name):
            value *= BRANCH / branches**0.5
        elif name.startswith("norm_out"):
            value *= 0.1
        elif AFTER_NORM.fullmatch(name) and self.outliers:
            value[:, self._outlier_features(shape[1])] /= 1 + OUTLIER
        return value

    def _with_outliers(self, name: str, bias: Tensor) -> Tensor:
        """Return the bias of a modulation with outliers in its scales, which are the second of each three parts."""
        found = re.fullmatch(r".*blocks\.\d+\.norm(1|1_context)?\.linear\.bias", name)
        if found and self.outliers:
            parts = bias.view(6 if found[1] else 3, -1)
            parts[1::3, self._outlier_features(parts.shape[1])] = OUTLIER
        return bias

    def _outlier_features(self, width: int) -> Tensor:
        return torch.randperm(width, generator=torch.Generator().manual_seed(0))[: self.outliers].to(place())


class SmallTrainedLike(TrainedLike):
    """Small enough for a test on a CPU; the layers are still large enough for 8-bit products."""

    sizes: ClassVar[dict[str, object]] = {
        "num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32,
        "joint_attention_dim": 48, "pooled_projection_dim": 32, "axes_dims_rope": (8, 12, 12),
    }  # fmt: skip
    text: ClassVar[dict[str, int]] = {"tokens": 40, "width": 48, "pooled": 32}


def place() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normal(name: str, shape: torch.Size) -> Tensor:
    """N(0, 1), always the same for the same name and kind of device."""
    generator = torch.Generator(place()).manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, device=place())


def make_batches(family: type[TrainedLike], pixels: int, device: torch.device) -> list[Batch]:
    """Return batches of one smooth image each, with its mirror image as the reference and a text of its own."""
    side = pixels // 8

    def one(index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        image = functional.interpolate(random(1, 16, 4, 4), size=(side, side), mode="bicubic")
        image = image / image.square().mean().sqrt()
        text = {
            "prompt_embeds": random(1, family.text["tokens"], family.text["width"]),
            "pooled_prompt_embeds": random(1, family.text["pooled"]),
        }
        return Batch(latents=image, references=[image.flip(-1)], text=text, keys=(str(index),)).to(
            device, torch.float32
        )

    return [one(index) for index in range(BATCHES)]
