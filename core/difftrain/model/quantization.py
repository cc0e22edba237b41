"""Frozen weights in fewer bits."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, ClassVar

from difftrain.contracts import Quantizer

if TYPE_CHECKING:
    import torch
    from torch import nn


class QuantoInt8(Quantizer):
    """Weights as int8 with one scale per row, through optimum-quanto; products run in the activations' dtype."""

    name: ClassVar[str] = "int8-quanto"

    def check(self) -> str | None:
        if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.quanto") is None:
            return f"{self.name} needs the package optimum-quanto; install it with `pip install optimum-quanto`"
        return None

    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        from optimum.quanto import QLinear, qint8

        layer: nn.Module = QLinear.from_module(module.to(device), weights=qint8)
        layer.name = name  # type: ignore[assignment]  # as quanto's own quantize() does, for its messages
        layer.freeze()  # type: ignore[operator]  # quanto's: keeps the integers instead of the weight
        # freezing turns requires_grad on again
        return layer.requires_grad_(False).train(module.training)
