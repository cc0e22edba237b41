"""Frozen weights in 4 bits, quantised by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from difftrain.contracts import Quantizer
from difftrain.model.precision.optional_package import lacking

if TYPE_CHECKING:
    import torch
    from torch import nn


class _BitsAndBytes(Quantizer):
    """4-bit codes with a scale per 64 weights, a quarter of bfloat16's memory; products run in the activations' number
    format."""

    name: ClassVar[str] = ""
    can_compile: ClassVar[bool] = True
    can_fuse: ClassVar[bool] = True
    can_dequantize: ClassVar[bool] = True
    weight_bytes: ClassVar[float | None] = 0.5 + 4 / 64

    def check(self) -> str | None:
        lack = lacking("bitsandbytes", (0, 50))
        return f"{self.name} {lack}, or use int4-quanto" if lack else None

    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        import torch
        from bitsandbytes.functional import quantize_4bit

        from difftrain.model.precision import weight_only_linear as layers

        layer = {"nf4-bnb": layers.Nf4StoredLinear, "fp4-bnb": layers.Fp4StoredLinear}[self.name]
        if module.in_features % layer.BLOCK:
            return module  # its rows end within a scale's weights, and the CPU kernel then makes wrong ones
        linear = module.to(device)
        codes, state = quantize_4bit(linear.weight.detach(), blocksize=layer.BLOCK, quant_type=layer.CODES)
        return layer(linear, codes.view(torch.int8), state.absmax).requires_grad_(False).train(module.training)


class BitsAndBytesNf4(_BitsAndBytes):
    """Weights as nf4, 4-bit codes spaced for normally distributed weights, with a scale per 64 of them."""

    name: ClassVar[str] = "nf4-bnb"


class BitsAndBytesFp4(_BitsAndBytes):
    """Weights as fp4, 4-bit floating point codes with a scale per 64 of them: less exact than nf4."""

    name: ClassVar[str] = "fp4-bnb"
