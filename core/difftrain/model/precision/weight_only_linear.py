"""Frozen linear layers whose weights are stored in fewer bits and multiplied in the activations' number format."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from difftrain.model.precision.stored_weight import StoredWeight

Shape = tuple[int, int]
"""(out_features, in_features)."""


class _Product(torch.autograd.Function):
    """``rows @ W.T + bias``, with W made from its stored form in forward and again in backward: it is never kept.

    Each argument has a name: for a call that needs no gradient, torch.compile tells by their number whether ``forward``
    takes the context, and is wrong about ``*stored``. Blocks then ran uncompiled without a word.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        bias: Tensor | None,
        layer: type[WeightOnlyLinear],
        shape: Shape,
        codes: Tensor,
        scale: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.layer, ctx.shape = layer, shape
        return nn.functional.linear(rows, layer.whole(rows.dtype, shape, codes, scale), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale = ctx.saved_tensors  # once: where activations are recomputed, torch gives them out once
        return gradient @ ctx.layer.whole(gradient.dtype, ctx.shape, codes, scale), None, None, None, None, None, None


class WeightOnlyLinear(StoredWeight, nn.Linear):
    """A linear layer with frozen weights in a stored form.

    Formats and codes are those of optimum-quanto, torchao and bitsandbytes, but their layers are not used. Those of
    quanto cannot be compiled, some build kernels with nvcc, and its product with 4-bit weights is for few rows.
    Autograd keeps a whole copy of each weight of torchao's until the backward. bitsandbytes' lose the gradient on some
    CPUs after a validation, and return float32 where autocast asks for bfloat16 (docs/log.md).

    ``weight`` holds the codes as int8, those of all formats: numbers of a floating point type would be cast by whatever
    casts a model, peft would give an adapter their dtype, and transformers' T5 casts activations to the weights' dtype
    unless that is int8.
    """

    def __init__(self, linear: nn.Linear, codes: Tensor, scale: Tensor) -> None:
        """Take the place of a linear layer.

        Args:
            codes: int8, on the layer's device.
            scale: What the codes are multiplied by, float32 where it is one number for each row.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)
        self.scale: Tensor
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    @staticmethod
    @abstractmethod
    def whole(dtype: torch.dtype, shape: Shape, codes: Tensor, scale: Tensor) -> Tensor:
        """Return the weight that codes and scale stand for, of the given dtype and shape."""

    def dequantize(self) -> Tensor:
        return self.whole(torch.float32, (self.out_features, self.in_features), self.weight, self.scale)

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        rows = input.reshape(-1, self.in_features).to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        shape = (self.out_features, self.in_features)
        output: Tensor = _Product.apply(rows, bias, type(self), shape, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return output.reshape(*input.shape[:-1], self.out_features)


class Int8StoredLinear(WeightOnlyLinear):
    """int8 codes, [out_features, in_features], and a scale per row, [out_features, 1]."""

    @staticmethod
    def whole(dtype: torch.dtype, shape: Shape, codes: Tensor, scale: Tensor) -> Tensor:
        return (codes * scale).to(dtype).view(shape)


class Fp8StoredLinear(WeightOnlyLinear):
    """float8_e4m3fn codes, kept as int8, [out_features, in_features], and a scale per row, [out_features, 1].

    Their bits become those of float16, which has one bit more of exponent and is exact here: Triton, with which
    torch.compile makes its kernels, knows these 8-bit floats from compute capability 8.9 on only.
    """

    FACTOR: ClassVar[float] = 2.0**8
    """2 to the difference of the exponents' biases, 15 and 7."""

    @classmethod
    def whole(cls, dtype: torch.dtype, shape: Shape, codes: Tensor, scale: Tensor) -> Tensor:
        wide = codes.to(torch.int16)  # the sign is at the top, and in all bits above
        halves = ((wide & 0x7F) << 7 | wide & -0x8000).view(torch.float16)
        return (halves.float() * cls.FACTOR * scale).to(dtype).view(shape)


class Fp8UzStoredLinear(Fp8StoredLinear):
    """float8_e4m3fnuz codes, those of older AMD cards: their exponents have a bias of 8."""

    FACTOR: ClassVar[float] = 2.0**7


class PackedLinear(WeightOnlyLinear):
    """Codes of a few bits, from 0 on, several a byte, and a factor and an offset for each group of weights in a row.

    A weight is ``factor * code - offset``. ``weight`` is int8 [out_features, in_features / EACH], each byte with the
    first code in its lowest bits; ``scale`` is [out_features, groups, 2].
    """

    BITS: ClassVar[int]
    EACH: ClassVar[int]
    """Codes a byte."""

    @classmethod
    def packed(cls, codes: Tensor) -> Tensor:
        """Return codes, uint8 [out_features, in_features], as :attr:`weight` holds them."""
        parts = codes.view(len(codes), -1, cls.EACH)
        shifts = torch.arange(cls.EACH, device=codes.device, dtype=torch.uint8) * cls.BITS
        return (parts << shifts).sum(-1, dtype=torch.uint8).view(torch.int8)

    @classmethod
    def whole(cls, dtype: torch.dtype, shape: Shape, codes: Tensor, scale: Tensor) -> Tensor:
        bytes_of_codes, mask = codes.view(torch.uint8), (1 << cls.BITS) - 1
        parts = [(bytes_of_codes >> cls.BITS * place) & mask for place in range(cls.EACH)]
        groups = torch.stack(parts, dim=-1).view(*scale.shape[:2], -1)
        factor, offset = scale.float().unsqueeze(-2).unbind(-1)
        return (groups * factor - offset).to(dtype).view(shape)


class Int4StoredLinear(PackedLinear):
    """16 values, two a byte."""

    BITS: ClassVar[int] = 4
    EACH: ClassVar[int] = 2


class Int2StoredLinear(PackedLinear):
    """4 values, four a byte."""

    BITS: ClassVar[int] = 2
    EACH: ClassVar[int] = 4


class FourBitStoredLinear(WeightOnlyLinear):
    """Two codes a byte in bitsandbytes' order, and the largest magnitude of each block of 64 weights, a row each.

    Source: Dettmers et al., QLoRA, arXiv:2305.14314, section 3.
    """

    BLOCK: ClassVar[int] = 64
    CODES: ClassVar[str]
    """bitsandbytes' name of the format."""

    @classmethod
    def whole(cls, dtype: torch.dtype, shape: Shape, codes: Tensor, scale: Tensor) -> Tensor:
        import bitsandbytes  # noqa: F401 - registers the operation

        weight: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            codes.view(torch.uint8), scale, cls.BLOCK, cls.CODES, list(shape), dtype
        )
        return weight


class Nf4StoredLinear(FourBitStoredLinear):
    """Codes spaced for normally distributed weights."""

    CODES: ClassVar[str] = "nf4"


class Fp4StoredLinear(FourBitStoredLinear):
    """Floating point codes: a sign, two bits of exponent, one of fraction."""

    CODES: ClassVar[str] = "fp4"
