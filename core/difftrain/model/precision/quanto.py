"""Frozen weights in fewer bits, through optimum-quanto."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING, ClassVar

from difftrain.contracts import Quantizer

if TYPE_CHECKING:
    import torch
    from torch import nn


class _Quanto(Quantizer):
    """Weights in fewer bits through optimum-quanto; products run in the activations' number format."""

    name: ClassVar[str] = ""
    _weights: ClassVar[str]
    """quanto's name of the format."""

    def check(self) -> str | None:
        if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.quanto") is None:
            return f"{self.name} needs the package optimum-quanto; install it with `pip install optimum-quanto`"
        return None

    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        from optimum import quanto

        from difftrain.model.precision.quanto_linear import QuantoLinear

        layer: nn.Module = QuantoLinear.from_module(module.to(device), weights=getattr(quanto, self._weights))
        layer.name = name  # type: ignore[assignment]  # as quanto's own quantize() does, for its messages
        layer.freeze()  # type: ignore[operator]  # quanto's: keeps the integers instead of the weight
        # freezing turns requires_grad on again
        return layer.requires_grad_(False).train(module.training)


class QuantoInt8(_Quanto):
    """Weights as int8 with a scale per row."""

    name: ClassVar[str] = "int8-quanto"
    weight_bytes: ClassVar[float | None] = 1.0
    _weights: ClassVar[str] = "qint8"


class QuantoFp8(_Quanto):
    """Weights as float8_e4m3fn with a scale per row: less exact than int8, and no faster."""

    name: ClassVar[str] = "fp8-quanto"
    weight_bytes: ClassVar[float | None] = 1.0
    _weights: ClassVar[str] = "qfloat8_e4m3fn"


class QuantoFp8Uz(_Quanto):
    """Weights as float8_e4m3fnuz with a scale per row: the 8-bit floats of older AMD cards."""

    name: ClassVar[str] = "fp8uz-quanto"
    weight_bytes: ClassVar[float | None] = 1.0
    _weights: ClassVar[str] = "qfloat8_e4m3fnuz"


class _PackedQuanto(_Quanto):
    """Several weights in a byte."""

    def check(self) -> str | None:
        missing = super().check()
        if missing is None and (shutil.which("ninja") is None or shutil.which("c++") is None):
            return (
                f"{self.name} compiles a kernel when it is first used, and needs ninja and a C++ compiler for it; "
                "install both, or use int8-quanto"
            )
        return missing


class QuantoInt4(_PackedQuanto):
    """Weights as int4 with a scale per group of 128: half the memory of int8, and less exact."""

    name: ClassVar[str] = "int4-quanto"
    weight_bytes: ClassVar[float | None] = 0.53
    _weights: ClassVar[str] = "qint4"


class QuantoInt2(_PackedQuanto):
    """Weights as int2, four values, with a scale per group of 128: a quarter of int8's memory, and a coarse model."""

    name: ClassVar[str] = "int2-quanto"
    weight_bytes: ClassVar[float | None] = 0.28
    _weights: ClassVar[str] = "qint2"
