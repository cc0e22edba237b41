"""Latents to tokens and back, and the position of a token. Pure.

A token is 2x2 latent cells. Source: black-forest-labs/flux 802fb47, src/flux/sampling.py `prepare`, `unpack`.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATCH = 2


def pack(latents: Tensor) -> Tensor:
    """Return the tokens of latents, row by row.

    Args:
        latents: [B, C, h, w], h and w even.

    Returns:
        [B, h/2 * w/2, 4C]: channel c gives its four cells in the order (0,0) (0,1) (1,0) (1,1).

    Raises:
        ValueError: If h or w is odd.
    """
    batch, channels, height, width = latents.shape
    if height % PATCH or width % PATCH:
        raise ValueError(f"latents must have even height and width, got {height}x{width}")
    cells = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return the latents from which :func:`pack` made ``tokens``.

    Args:
        tokens: [B, height/2 * width/2, 4C].
        height: Latent cells, even.
        width: Latent cells, even.

    Returns:
        [B, C, height, width].
    """
    batch, _, features = tokens.shape
    channels = features // (PATCH * PATCH)
    cells = tokens.reshape(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def position_ids(
    rows: int, cols: int, *, index: int = 0, top: int = 0, left: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return the position of every token of an image: (index, row, column).

    float32 in every precision: bfloat16 has no odd numbers above 256.

    Args:
        rows: Number of token rows.
        cols: Number of token columns.
        index: Number of the image; 0 is the target.
        top: Row of the first token.
        left: Column of the first token.

    Returns:
        [rows * cols, 3], float32, row by row.
    """
    ids = torch.zeros(rows, cols, 3, dtype=torch.float32, device=device)
    ids[..., 0] = index
    ids[..., 1] = torch.arange(top, top + rows, dtype=torch.float32, device=device)[:, None]
    ids[..., 2] = torch.arange(left, left + cols, dtype=torch.float32, device=device)[None, :]
    return ids.reshape(rows * cols, 3)
