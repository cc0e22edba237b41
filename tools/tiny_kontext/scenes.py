"""Procedural scenes: a background and up to three shapes, drawn for a whole batch at once.

A scene is two rows of numbers, so that an edit is two other rows: recolour, move, remove and add change a few
of them, and both images are drawn the same way. The shapes alone also go on photographs.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATTERNS = ("plain", "gradient", "striped", "checked", "cloudy")
SHAPES = ("circle", "square", "triangle", "ring", "cross", "frame")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.14, 0.26, 0.86),
    "yellow": (0.96, 0.87, 0.14),
    "orange": (0.96, 0.52, 0.09),
    "purple": (0.52, 0.16, 0.66),
    "pink": (0.97, 0.56, 0.72),
    "turquoise": (0.16, 0.78, 0.76),
    "brown": (0.45, 0.27, 0.12),
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.06),
    "grey": (0.50, 0.50, 0.50),
}
MAX_SHAPES = 3
BACKGROUND_NUMBERS = 14
"""pattern, colour a (3), colour b (3), frequency, angle, phases (5)."""
SHAPE_NUMBERS = 9
"""present, shape, x, y, radius, angle, colour (3); x and y from -1 to 1, radius in half shorter edges."""


def grid(height: int, width: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return coordinates of pixel centres, [H, 1] and [1, W]; the shorter edge goes from -1 to 1."""
    shorter = min(height, width)
    y = (torch.arange(height, device=device) + 0.5) * 2 / shorter - height / shorter
    x = (torch.arange(width, device=device) + 0.5) * 2 / shorter - width / shorter
    return y[:, None], x[None, :]


def draw_background(background: Tensor, height: int, width: int) -> Tensor:
    """Turn [B, BACKGROUND_NUMBERS] into [B, 3, H, W] in [0, 1]."""
    y, x = grid(height, width, background.device)
    kind, colour_a, colour_b, frequency, angle, phases = background.split([1, 3, 3, 1, 1, 5], dim=1)
    frequency, cosine, sine = frequency[..., None], angle.cos()[..., None], angle.sin()[..., None]
    along, across = x * cosine + y * sine, y * cosine - x * sine
    sharpness = 12 / frequency
    first = torch.sin(3.14159 * frequency * along + phases[:, :1, None])
    second = torch.sin(3.14159 * frequency * across + phases[:, 1:2, None])
    waves = [
        torch.sin((1.3 + k) * (x * torch.cos(phases[:, k : k + 1, None]) + y * torch.sin(phases[:, k : k + 1, None]))
                  * frequency * 0.6 + 2 * phases[:, (k + 1) % 5, None, None])
        for k in range(5)
    ]  # fmt: skip
    values = torch.stack(
        [
            torch.zeros_like(along),
            along.mul(0.5).add(0.5).clamp(0, 1),
            (first * sharpness).mul(0.5).add(0.5).clamp(0, 1),
            (first * second * sharpness * 1.5).mul(0.5).add(0.5).clamp(0, 1),
            (sum(waves) * 0.22).add(0.5).clamp(0, 1),
        ],
        dim=1,
    )
    chosen = torch.take_along_dim(values, kind.long()[:, :, None, None], dim=1)
    return colour_a[..., None, None] * (1 - chosen) + colour_b[..., None, None] * chosen


def draw_shapes(image: Tensor, shapes: Tensor) -> Tensor:
    """Draw [B, MAX_SHAPES, SHAPE_NUMBERS] over [B, 3, H, W], the last on top; edges are smooth over one pixel."""
    height, width = image.shape[-2:]
    y, x = grid(height, width, image.device)
    half = min(height, width) / 2
    for index in range(shapes.shape[1]):
        present, kind, centre_x, centre_y, radius, angle, colour = shapes[:, index].split([1, 1, 1, 1, 1, 1, 3], dim=1)
        u = x - centre_x[..., None] * (width / 2 / half)
        v = y - centre_y[..., None] * (height / 2 / half)
        cosine, sine, r = angle.cos()[..., None], angle.sin()[..., None], radius[..., None]
        u, v = u * cosine + v * sine, v * cosine - u * sine
        distances = torch.stack(
            [
                (u.square() + v.square()).sqrt() - r,
                torch.maximum(u.abs(), v.abs()) - 0.86 * r,
                torch.maximum(u.abs() * 0.866 + v * 0.5, -v) - 0.5 * r,
                ((u.square() + v.square()).sqrt() - 0.75 * r).abs() - 0.25 * r,
                torch.minimum(
                    torch.maximum(u.abs() - r, v.abs() - 0.33 * r), torch.maximum(v.abs() - r, u.abs() - 0.33 * r)
                ),
                torch.minimum(width / 2 / half - x.abs(), height / 2 / half - y.abs()) - r,
            ],
            dim=1,
        )
        distance = torch.take_along_dim(distances, kind.long()[:, :, None, None], dim=1)
        cover = (0.5 - distance * half).clamp(0, 1) * present[..., None, None]
        image = image * (1 - cover) + colour[..., None, None] * cover
    return image
