"""A frozen linear layer whose products run in 8 bits, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from difftrain.model.precision.int8_product import int8_product, usable
from difftrain.model.precision.stored_weight import StoredWeight

Format = Literal["fp8", "int8"]
LARGEST: dict[Format, float] = {"fp8": 448.0, "int8": 127.0}
"""Of float8_e4m3fn, whose largest finite value it is, and of int8 without -128."""
FEWEST_ROWS = 32
"""Products of fewer rows run in the activations' own number format: they read the weights and little else, and the
8-bit kernels ask for more than 16 rows."""


@dataclass(frozen=True)
class ScaledRows:
    """A matrix in 8 bits with a scale for each row: ``codes * scale`` is about what it was made from."""

    codes: Tensor
    """[rows, columns], float8_e4m3fn or int8."""
    scale: Tensor
    """[rows, 1], float32, above 0."""

    @classmethod
    def of(cls, matrix: Tensor, form: Format) -> ScaledRows:
        """Each row divided by its largest magnitude, so that the whole range of the format is used.

        Args:
            matrix: [rows, columns], floating point.
        """
        # from the matrix twice, not from one float32 copy: torch.compile would write that copy to memory (docs/log.md)
        scale = matrix.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST[form]
        scaled = matrix.float() * (1 / scale)
        codes = scaled.to(torch.float8_e4m3fn) if form == "fp8" else scaled.round().to(torch.int8)
        return cls(codes, scale)

    def product(self, other: ScaledRows, dtype: torch.dtype) -> Tensor:
        """Return ``self @ other.T``, [rows of self, rows of other]."""
        if self.codes.dtype == torch.int8:
            if usable(self.codes):
                made: Tensor = int8_product(self.codes, other.codes, self.scale, other.scale, dtype)
                return made
            whole = torch._int_mm(self.codes, other.codes.t())
            return _in_dtype(whole.float() * self.scale * other.scale.t(), dtype)
        if self.codes.device.type == "cpu":  # torch has no product of scaled rows there
            exact = self.codes.float() @ other.codes.float().t()
            return _in_dtype(exact * self.scale * other.scale.t(), dtype)
        output: Tensor = torch._scaled_mm(
            self.codes,
            other.codes.t(),
            scale_a=self.scale,
            scale_b=other.scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return _in_dtype(output, dtype)


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in a number format, without a conversion to the one that it has.

    In a compiled autograd function such a conversion loses the gradient, with torch 2.11 and no error (docs/log.md).
    """
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


class _Product(torch.autograd.Function):
    """``rows @ W.T`` for a frozen W; the gradient of the rows is an 8-bit product as well."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        codes: Tensor,
        transposed: Tensor | None,
        scale: Tensor,
        form: Format,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(codes, transposed, scale)
        ctx.form, ctx.dtype = form, rows.dtype
        return ScaledRows.of(rows, form).product(ScaledRows(codes, scale), dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        codes, transposed, scale = ctx.saved_tensors
        # an output channel's scale cannot leave the sum over the channels, so it goes into the gradient
        weighted = gradient.float() * scale.t()
        if gradient.dtype != torch.float32:
            weighted = weighted.to(gradient.dtype)  # half the memory of what torch.compile writes for the two passes
        scaled = ScaledRows.of(weighted, ctx.form)
        if transposed is None:
            transposed = codes.t().contiguous()
        ones = torch.ones(transposed.shape[0], 1, dtype=torch.float32, device=transposed.device)
        return scaled.product(ScaledRows(transposed, ones), ctx.dtype), None, None, None, None, None


def _product(
    rows: Tensor, codes: Tensor, transposed: Tensor | None, scale: Tensor, form: Format, dtype: torch.dtype
) -> Tensor:
    output: Tensor = _Product.apply(rows, codes, transposed, scale, form, dtype)  # type: ignore[no-untyped-call]
    return output


class EightBitLinear(StoredWeight, nn.Linear):
    """A linear layer with frozen 8-bit weights, one scale for each output channel.

    ``weight`` holds the codes as int8, also those of fp8: as numbers of a floating point type they would be cast by
    whatever casts a model, and peft would give an adapter their dtype.
    """

    form: ClassVar[Format]

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rows = ScaledRows.of(self._rotated(linear.weight.detach()), self.form)
        self.weight = nn.Parameter(rows.codes.view(torch.int8), requires_grad=False)
        self.register_buffer("scale", rows.scale)
        self.scale: Tensor
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.register_buffer("transposed", None, persistent=False)
        self.transposed: Tensor | None

    def keep_transposed(self) -> None:
        """Keep the codes transposed too, [in_features, out_features]; the backward pass makes them anew otherwise."""
        self.transposed = self.weight.detach().t().contiguous()

    @property
    def codes(self) -> Tensor:
        """[out_features, in_features], in the 8-bit format."""
        return self._in_form(self.weight)

    def dequantize(self) -> Tensor:
        return self._rotated(self.codes.float() * self.scale)  # a rotation is its own inverse

    def _in_form(self, stored: Tensor) -> Tensor:
        return stored.view(torch.float8_e4m3fn) if self.form == "fp8" else stored

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        rows = self._rotated(input.reshape(-1, self.in_features))
        if rows.shape[0] == 1:  # a sum, of which torch.compile makes one kernel that reads the codes once
            output = ((self.codes.float() * rows.float()).sum(dim=1) * self.scale[:, 0]).to(dtype)[None]
        elif rows.shape[0] < FEWEST_ROWS:
            output = nn.functional.linear(rows.to(dtype), (self.codes.float() * self.scale).to(dtype))
        else:
            transposed = None if self.transposed is None else self._in_form(self.transposed)
            output = _product(rows, self.codes, transposed, self.scale, self.form, dtype)
        if self.bias is not None:
            output = output + self.bias.to(dtype)
        return output.reshape(*input.shape[:-1], self.out_features)

    def _rotated(self, rows: Tensor) -> Tensor:
        """Return rows as they are multiplied; a subclass may rotate inputs and weights alike, by its own inverse."""
        return rows


class Fp8Linear(EightBitLinear):
    """Products of float8_e4m3fn: the fastest on cards of compute capability 8.9 and above."""

    form: ClassVar[Format] = "fp8"


class Int8Linear(EightBitLinear):
    """Products of int8: three times as exact as fp8, and fast on cards from compute capability 8.0 on."""

    form: ClassVar[Format] = "int8"


class RotatedInt8Linear(Int8Linear):
    """int8 after a Hadamard rotation of the inputs, which spreads outliers over their neighbours.

    Source: Ashkboos et al., QuaRot, arXiv:2404.00456, section 4.
    """

    LARGEST_GROUP: ClassVar[int] = 128

    @property
    def group(self) -> int:
        """Features that are rotated together: the largest power of two that divides them, at most 128."""
        return min(self.LARGEST_GROUP, self.in_features & -self.in_features)

    def _rotated(self, rows: Tensor) -> Tensor:
        groups = rows.reshape(rows.shape[0], -1, self.group)
        return (groups @ hadamard(self.group, rows)).reshape(rows.shape)


def hadamard(size: int, like: Tensor) -> Tensor:
    """[size, size], orthogonal and symmetric, of entries +-1/sqrt(size) (Sylvester's construction).

    Args:
        size: A power of two.
        like: Its device and number format are taken.
    """
    index = torch.arange(size, device=like.device)
    shared = index[:, None] & index[None, :]
    parity = torch.zeros_like(shared)
    for bit in range(size.bit_length()):
        parity = parity ^ (shared >> bit & 1)
    matrix: Tensor = (1 - 2 * parity) / size**0.5
    return matrix.to(like.dtype)
