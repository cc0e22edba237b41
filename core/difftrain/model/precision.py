"""Frozen weights in fewer bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from difftrain.contracts import Quantizer

if TYPE_CHECKING:
    import torch
    from torch import nn


class QuantoInt8(Quantizer):
    """Weights as int8 with a scale a row, through optimum-quanto; products run in the activations' dtype."""

    name: ClassVar[str] = "int8-quanto"

    def check(self) -> str | None:
        if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.quanto") is None:
            return f"{self.name} needs the package optimum-quanto; install it with `pip install optimum-quanto`"
        return None

    def quantize(self, module: nn.Module, device: torch.device, keep: Callable[[str], bool]) -> None:
        """Layer by layer, so that no more than one layer lies on ``device`` unquantised."""
        from optimum.quanto import qint8, quantize
        from torch import nn

        linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and not keep(name)]
        for name in linears:
            module.get_submodule(name).to(device)
            quantize(module, weights=qint8, include=name)
            module.get_submodule(name).freeze()  # type: ignore[operator]  # a quanto module now
        # freezing turns requires_grad on again
        module.requires_grad_(False)
