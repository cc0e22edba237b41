"""The kernel of `int8_product.py`. Importing it needs Triton, which torch brings along for GPUs."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

SHAPES = [
    {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": depth, "stages": stages, "warps": warps}
    for rows, columns, depth, stages, warps in (
        (128, 256, 128, 3, 8),
        (128, 256, 64, 4, 8),
        (128, 128, 128, 3, 8),
        (128, 128, 128, 4, 4),
        (128, 128, 64, 4, 4),
        (64, 128, 64, 4, 4),
    )
]
"""Tiles that are tried. The largest need the memory of data centre cards; Triton leaves out what does not fit."""


@triton.autotune(  # type: ignore[untyped-decorator, unused-ignore]
    configs=[
        triton.Config(
            {name: shape[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")},
            num_stages=shape["stages"],
            num_warps=shape["warps"],
        )
        for shape in SHAPES
    ],
    key=["N", "K", "rows_class"],
)
@triton.heuristics(  # type: ignore[untyped-decorator, unused-ignore]
    {"EVEN_K": lambda given: given["K"] % given["BLOCK_K"] == 0}
)
@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _multiply(  # type: ignore[no-untyped-def, unused-ignore]
    left, right, left_scale, right_scale, output, M, N, K, rows_class,  # noqa: ARG001  # the tiles are chosen by it
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    down, across = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    # groups of 8 rows of tiles, column by column: neighbours read the same inputs, which are then in the L2 cache
    in_group = 8 * across
    first = (program // in_group) * 8
    height = min(down - first, 8)
    tile_m = first + (program % in_group) % height
    tile_n = (program % in_group) // height
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    # a tile over the edge reads other rows again, and does not write what comes of them
    left_at = left + (rows % M).to(tl.int64)[:, None] * K + depth[None, :]
    right_at = right + (columns % N).to(tl.int64)[None, :] * K + depth[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            left_tile = tl.load(left_at)
            right_tile = tl.load(right_at)
        else:
            left_tile = tl.load(left_at, mask=depth[None, :] < K - start, other=0)
            right_tile = tl.load(right_at, mask=depth[:, None] < K - start, other=0)
        total = tl.dot(left_tile, right_tile, total, out_dtype=tl.int32)
        left_at += BLOCK_K
        right_at += BLOCK_K
    row_scale = tl.load(left_scale + rows % M)
    column_scale = tl.load(right_scale + columns % N)
    result = total.to(tl.float32) * row_scale[:, None] * column_scale[None, :]
    place = output + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(place, result.to(output.dtype.element_ty), mask=(rows[:, None] < M) & (columns[None, :] < N))


def multiply(left: Tensor, right: Tensor, left_scale: Tensor, right_scale: Tensor, output: Tensor) -> None:
    """Write ``(left @ right.T) * left_scale * right_scale.T``.

    Args:
        left: [M, K], int8, dense.
        right: [N, K], int8, dense.
        left_scale: M numbers, float32.
        right_scale: N numbers, float32.
        output: [M, N], dense.
    """
    (rows, depth), columns = left.shape, right.shape[0]

    def grid(meta: Any) -> tuple[int]:
        return (triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(columns, meta["BLOCK_N"]),)

    # tried again only for another power of two of the rows: every image size has its own number of tokens
    _multiply[grid](left, right, left_scale, right_scale, output, rows, columns, depth, rows.bit_length())
