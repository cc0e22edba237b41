"""The product of two int8 matrices with a scale for each row, as one kernel.

torch's ``_int_mm`` writes the sums as int32, twice the bytes of the result, and another kernel reads and scales them.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.utils.flop_counter
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
"""Builds of torch for CUDA bring it along on Linux."""


def usable(codes: Tensor) -> bool:
    """Whether the kernel takes such a matrix on this machine."""
    return HAS_TRITON and codes.device.type == "cuda"


@torch.library.custom_op("difftrain::int8_product", mutates_args=(), device_types="cuda")
def int8_product(left: Tensor, right: Tensor, left_scale: Tensor, right_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(left @ right.T) * left_scale * right_scale.T``, [M, N].

    Args:
        left: [M, K], int8.
        right: [N, K], int8; K a multiple of 16.
        left_scale: [M, 1], float32.
        right_scale: [N, 1], float32.
        dtype: Of the result.
    """
    from difftrain.model.precision.int8_kernel import multiply

    output = left.new_empty(left.shape[0], right.shape[0], dtype=dtype)
    multiply(left.contiguous(), right.contiguous(), left_scale.contiguous(), right_scale.contiguous(), output)
    return output


@int8_product.register_fake
def _(left: Tensor, right: Tensor, _left_scale: Tensor, _right_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0], dtype=dtype)


@torch.utils.flop_counter.register_flop_formula(torch.ops.difftrain.int8_product)
def _flops(left_shape: tuple[int, ...], right_shape: tuple[int, ...], *_others: object, **_named: object) -> int:
    return 2 * left_shape[0] * left_shape[1] * right_shape[0]
