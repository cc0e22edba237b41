"""Precisions whose layers torch.compile does not take: those of difftrain all go together with every option."""

from __future__ import annotations

from typing import ClassVar

from difftrain import Quantizer, hookimpl


class Rounded8(Quantizer):
    """Weights rounded to 8 bits."""

    name: ClassVar[str] = "own-8bit"
    weight_bytes: ClassVar[float | None] = 1.0
    _levels: ClassVar[int] = 127

    def check(self):
        return None

    def convert(self, name, module, device):
        linear = module.to(device).requires_grad_(False)
        step = linear.weight.abs().amax(dim=1, keepdim=True) / self._levels
        linear.weight.copy_((linear.weight / step).round() * step)
        return linear


class Rounded4(Rounded8):
    """Weights rounded to 4 bits."""

    name: ClassVar[str] = "own-4bit"
    weight_bytes: ClassVar[float | None] = 0.53
    _levels: ClassVar[int] = 7


@hookimpl
def difftrain_quantizers():
    return (Rounded8, Rounded4)
