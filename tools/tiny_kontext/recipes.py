"""One edit as numbers, and many of them as arrays.

Every edit of a photograph is one formula: turn, then `clamp(matrix @ pixel ** gamma + bias)`, then shapes on
top. Every edit of a scene is another scene. So a batch can mix all edits, and all of it is drawn on the GPU
without a branch (`images.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scenes import BACKGROUND_NUMBERS, MAX_SHAPES, SHAPE_NUMBERS

TURNS = ("none", "mirror", "flip", "half", "left", "right")
"""Geometry of the target; left and right are quarter turns, for square images only."""
OVERLAYS = ("add", "recolour", "frame", "two")
"""Kinds whose shape goes on top of the finished image."""
ANY_PHOTOGRAPH = -1
SCENE = -2


@dataclass(kw_only=True)
class Edit:
    """One training pair before it is drawn."""

    kind: str
    caption: str
    turn: int = 0
    """Index into `TURNS`."""
    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))
    bias: np.ndarray = field(default_factory=lambda: np.zeros(3))
    gamma: float = 1.0
    photo: int = ANY_PHOTOGRAPH
    """Index of the photograph; `ANY_PHOTOGRAPH` leaves it to training, `SCENE` is none."""
    backgrounds: tuple[np.ndarray, np.ndarray] | None = None
    """Backgrounds of the reference scene and of the target scene."""
    shapes: tuple[list[np.ndarray], list[np.ndarray]] = ((), ())
    """Shapes of the reference and of the target."""


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """Many edits as arrays, ready for the GPU; the first axis is the edit."""

    kinds: list[str]
    captions: list[str]
    turn: np.ndarray
    matrix: np.ndarray
    bias: np.ndarray
    gamma: np.ndarray
    photo: np.ndarray
    backgrounds: np.ndarray
    """[N, 2, BACKGROUND_NUMBERS]: of the reference, of the target."""
    shapes: np.ndarray
    """[N, 2, MAX_SHAPES, SHAPE_NUMBERS]."""
    overlay: np.ndarray
    """Whether the target's shapes are added after turn and colour (and only the first of them), 0 or 1."""


def collect(edits: list[Edit]) -> Recipes:
    """Stack edits into arrays."""
    backgrounds = np.zeros((len(edits), 2, BACKGROUND_NUMBERS), np.float32)
    backgrounds[:, :, 7] = 1  # a frequency that is safe to divide by
    shapes = np.zeros((len(edits), 2, MAX_SHAPES, SHAPE_NUMBERS), np.float32)
    for index, item in enumerate(edits):
        for side in range(2):
            if item.backgrounds is not None:
                backgrounds[index, side] = item.backgrounds[side]
            for slot, numbers in enumerate(item.shapes[side]):
                shapes[index, side, slot] = numbers
    return Recipes(
        kinds=[item.kind for item in edits],
        captions=[item.caption for item in edits],
        turn=np.array([item.turn for item in edits], np.int64),
        matrix=np.stack([item.matrix for item in edits]).astype(np.float32),
        bias=np.stack([item.bias for item in edits]).astype(np.float32),
        gamma=np.array([item.gamma for item in edits], np.float32),
        photo=np.array([item.photo for item in edits], np.int64),
        backgrounds=backgrounds,
        shapes=shapes,
        overlay=np.array([item.kind in OVERLAYS for item in edits], np.float32),
    )
