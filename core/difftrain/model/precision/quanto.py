"""Frozen weights in fewer bits, quantised by optimum-quanto."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from difftrain.contracts import Quantizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class _Quanto(Quantizer):
    """Weights as optimum-quanto rounds them; products run in the activations' number format."""

    name: ClassVar[str] = ""
    can_compile: ClassVar[bool] = True
    can_fuse: ClassVar[bool] = True
    can_dequantize: ClassVar[bool] = True
    _weights: ClassVar[str]
    """quanto's name of the format."""

    def check(self) -> str | None:
        if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.quanto") is None:
            return f"{self.name} needs the package optimum-quanto; install it with `pip install optimum-quanto`"
        return None


class _EightBit(_Quanto):
    weight_bytes: ClassVar[float | None] = 1.0

    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        import torch
        from optimum import quanto

        from difftrain.model.precision import weight_only_linear as layers

        linear, kind = module.to(device), getattr(quanto, self._weights)
        weight = linear.weight.detach()
        scale = quanto.AbsmaxOptimizer()(weight, qtype=kind, axis=0)
        scale = torch.where(scale == 0, 1, scale)  # a row of zeros: an 8-bit float of 0 / 0 would be NaN
        # not optimized: that would build kernels with nvcc
        codes = quanto.quantize_weight(weight, kind, axis=0, scale=scale, optimized=False)._data
        layer: Callable[[nn.Linear, Tensor, Tensor], nn.Module] = {
            "int8-quanto": layers.Int8StoredLinear,
            "fp8-quanto": layers.Fp8StoredLinear,
            "fp8uz-quanto": layers.Fp8UzStoredLinear,
        }[self.name]
        stored = layer(linear, codes.view(torch.int8), scale.float().reshape(-1, 1))
        return stored.requires_grad_(False).train(module.training)


class QuantoInt8(_EightBit):
    """Weights as int8 with a scale per row."""

    name: ClassVar[str] = "int8-quanto"
    _weights: ClassVar[str] = "qint8"


class QuantoFp8(_EightBit):
    """Weights as float8_e4m3fn with a scale per row: less exact than int8, and no faster."""

    name: ClassVar[str] = "fp8-quanto"
    _weights: ClassVar[str] = "qfloat8_e4m3fn"


class QuantoFp8Uz(_EightBit):
    """Weights as float8_e4m3fnuz with a scale per row: the 8-bit floats of older AMD cards."""

    name: ClassVar[str] = "fp8uz-quanto"
    _weights: ClassVar[str] = "qfloat8_e4m3fnuz"


class _FewBits(_Quanto):
    """Several weights in a byte."""

    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        from difftrain.model.precision import weight_only_linear as layers

        layer = {"int4-quanto": layers.Int4StoredLinear, "int2-quanto": layers.Int2StoredLinear}[self.name]
        if module.in_features % layer.EACH:
            return module  # its rows would end within a byte
        linear = module.to(device)
        codes, scale = self._quantised(linear.weight.detach())
        return layer(linear, layer.packed(codes), scale).requires_grad_(False).train(module.training)

    def _quantised(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes, uint8 [out, in], and [out, groups, 2]: a group's factor and what is then taken away."""
        import torch
        from optimum import quanto

        kind, size, rows = getattr(quanto, self._weights), _group_size(weight.shape[1]), len(weight)
        factor, offset = quanto.MaxOptimizer()(weight, qtype=kind, axis=0, group_size=size)
        codes = torch.ops.quanto.quantize_affine(
            weight, bits=kind.bits, axis=0, group_size=size, scale=factor, shift=offset
        )
        scale = torch.stack([each.reshape(rows, -1) for each in (factor, offset)], dim=-1)
        return codes.reshape(weight.shape), scale


def _group_size(width: int) -> int | None:
    """Return the group that optimum-quanto's own layers choose; None if a row is one group."""
    sizes = [size for size in (128, 96, 64, 32) if width > 128 and width % size == 0]
    return sizes[0] if sizes else None


class QuantoInt4(_FewBits):
    """Weights as int4 with a scale per group of 128: half the memory of int8, and less exact."""

    name: ClassVar[str] = "int4-quanto"
    weight_bytes: ClassVar[float | None] = 0.53
    _weights: ClassVar[str] = "qint4"


class QuantoInt2(_FewBits):
    """Weights as int2, four values, with a scale per group of 128: a quarter of int8's memory, and a coarse model."""

    name: ClassVar[str] = "int2-quanto"
    weight_bytes: ClassVar[float | None] = 0.28
    _weights: ClassVar[str] = "qint2"
