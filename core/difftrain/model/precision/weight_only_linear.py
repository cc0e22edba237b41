"""Frozen linear layers whose weights are stored in fewer bits and multiplied in the activations' number format."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Shape = tuple[int, int]
"""(out_features, in_features)."""


class _Product(torch.autograd.Function):
    """``rows @ W.T + bias``, with W made from its stored form in forward and again in backward: it is never kept."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, bias: Tensor | None, layer: type[WeightOnlyLinear], shape: Shape, *stored: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*stored)
        ctx.layer, ctx.shape = layer, shape
        return nn.functional.linear(rows, layer.whole(rows.dtype, shape, *stored), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors  # once: where activations are recomputed, torch gives them out once
        whole = ctx.layer.whole(gradient.dtype, ctx.shape, *stored)
        return gradient @ whole, None, None, None, *(None for _ in stored)


class WeightOnlyLinear(nn.Linear):
    """A linear layer with frozen weights in a stored form.

    Formats and codes are those of torchao and bitsandbytes, but their layers are not used: autograd keeps a whole copy
    of each weight of torchao's until the backward, and bitsandbytes' lose the gradient on some CPUs after a validation,
    and return float32 where autocast asks for bfloat16 (docs/log.md).

    ``weight`` holds the codes as int8, those of all formats: numbers of a floating point type would be cast by whatever
    casts a model, peft would give an adapter their dtype, and transformers' T5 casts activations to the weights' dtype
    unless that is int8.
    """

    def __init__(self, linear: nn.Linear, codes: Tensor, scale: Tensor) -> None:
        """Take the place of a linear layer.

        Args:
            codes: int8, on the layer's device.
            scale: float32, what the codes are multiplied by.
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
    """float8_e4m3fn codes, kept as int8, [out_features, in_features], and a scale per row, [out_features, 1]."""

    @staticmethod
    def whole(dtype: torch.dtype, shape: Shape, codes: Tensor, scale: Tensor) -> Tensor:
        return (codes.view(torch.float8_e4m3fn).float() * scale).to(dtype).view(shape)


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
