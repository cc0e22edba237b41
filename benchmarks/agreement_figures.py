"""How far two trainings are apart, and a picture of their losses. For `agreement.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WINDOW = 10
"""Steps that a smoothed loss is the mean of."""
COLOURS = ("#000000", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b", "#7f7f7f")
WIDTH, PANEL, MARGIN, LINE = 1000, 330, 64, 18


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the mean of each ten steps in a row, or of all if there are fewer."""
    window = min(WINDOW, len(losses))
    return [sum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]


def differences(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return the relative differences of the smoothed losses: above 0 where the loss is higher than the reference's."""
    return [ours / true - 1 for ours, true in zip(smooth(losses), smooth(reference), strict=True)]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How alike two gradients of an adapter are."""

    cosine: float
    """Of all weights in one row."""
    ratio: float
    """Norm of ours by that of the exact ones: a cosine does not see a wrong factor."""
    worst: float
    """The lowest cosine of a module."""
    worst_module: str
    weights: int
    """How many weights were compared."""
    norm: float
    """Of the exact ones."""


def likeness(ours: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> Likeness:
    """Compare gradients by weight; weights whose exact gradient is zero are left out, as A's while B is zero.

    Raises:
        ValueError: If the two are not of the same weights.
    """
    if ours.keys() != exact.keys():
        raise ValueError(f"gradients of different weights: {sorted(ours.keys() ^ exact.keys())[:3]}")
    modules: dict[str, list[tuple[float, float, float]]] = {}
    for name, true in exact.items():
        if true.abs().max() > 0:
            modules.setdefault(name.split(".lora_")[0], []).append(_products(ours[name], true))
    sums = {name: tuple(map(math.fsum, zip(*products, strict=True))) for name, products in modules.items()}
    cosines = {name: _cosine(*products) for name, products in sums.items()}
    # a NaN is the worst of all
    worst = min(cosines, key=lambda name: -math.inf if math.isnan(cosines[name]) else cosines[name])
    together = tuple(map(math.fsum, zip(*sums.values(), strict=True)))
    return Likeness(
        cosine=_cosine(*together),
        ratio=math.sqrt(together[1] / together[2]),
        worst=cosines[worst],
        worst_module=worst,
        norm=math.sqrt(together[2]),
        weights=sum(true.numel() for true in exact.values() if true.abs().max() > 0),
    )


def _products(ours: Tensor, true: Tensor) -> tuple[float, float, float]:
    ours, true = ours.double().flatten(), true.double().flatten()
    return float(ours @ true), float(ours @ ours), float(true @ true)


def _cosine(both: float, ours: float, true: float) -> float:
    return both / math.sqrt(ours * true) if ours > 0 else (math.nan if math.isnan(ours) else 0.0)


def draw_curves(losses: Mapping[str, Sequence[float]], reference: str, title: str, path: Path) -> None:
    """Draw the smoothed losses, and below them the difference of each to the reference's in percent.

    Args:
        losses: By mode; modes with another number of steps than the reference are left out.
    """
    steps = len(losses[reference])
    modes = {name: values for name, values in losses.items() if len(values) == steps}
    percent = {name: [100 * one for one in differences(values, losses[reference])] for name, values in modes.items()}
    sheet = Image.new("RGB", (WIDTH, 3 * MARGIN + 2 * PANEL + LINE * len(modes)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text((MARGIN, 12), title, fill="black", font=font)
    top = MARGIN
    smoothed = {name: smooth(values) for name, values in modes.items()}
    _panel(draw, font, top, "loss, mean of 10 steps", smoothed, steps)
    top += PANEL + MARGIN
    _panel(draw, font, top, f"difference to {reference}, %", percent, steps, around_zero=True)
    top += PANEL + MARGIN
    for number, name in enumerate(modes):
        y = top - MARGIN // 2 + LINE * number
        draw.line((MARGIN, y + 8, MARGIN + 30, y + 8), fill=COLOURS[number % len(COLOURS)], width=3)
        draw.text((MARGIN + 40, y), name, fill="black", font=font)
    sheet.save(path)


def _panel(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    top: int,
    label: str,
    curves: Mapping[str, Sequence[float]],
    steps: int,
    *,
    around_zero: bool = False,
) -> None:
    finite = [value for values in curves.values() for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if around_zero:
        low, high = -max(map(abs, finite), default=1.0), max(map(abs, finite), default=1.0)
    span = (high - low) or 1.0
    draw.rectangle((MARGIN, top, WIDTH - MARGIN, top + PANEL), outline="gray")
    draw.text((MARGIN, top - LINE), label, fill="black", font=font)
    for part in range(5):
        y = top + PANEL - PANEL * part / 4
        draw.line((MARGIN, y, WIDTH - MARGIN, y), fill="lightgray")
        draw.text((6, y - 8), f"{low + span * part / 4:.4g}", fill="gray", font=font)
        x = MARGIN + (WIDTH - 2 * MARGIN) * part / 4
        draw.text((x - 8, top + PANEL + 4), f"{steps * part / 4:.0f}", fill="gray", font=font)
    for number, values in enumerate(curves.values()):
        first = steps - len(values) + 1  # a mean belongs to the last of its steps
        points = [
            (
                MARGIN + (WIDTH - 2 * MARGIN) * (first + index) / steps,
                top + PANEL - PANEL * (value - low) / span,
            )
            for index, value in enumerate(values)
            if math.isfinite(value)
        ]
        draw.line(points, fill=COLOURS[number % len(COLOURS)], width=2)
