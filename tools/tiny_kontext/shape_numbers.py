"""The numbers of a shape (`scenes.SHAPE_NUMBERS`), drawn to fit its words."""

from __future__ import annotations

import random

import numpy as np
from scenes import COLOURS, SHAPE_NUMBERS, SHAPES

PLACES = {
    "at the top left": (-0.55, -0.55),
    "at the top": (0.0, -0.55),
    "at the top right": (0.55, -0.55),
    "at the left": (-0.55, 0.0),
    "in the middle": (0.0, 0.0),
    "at the right": (0.55, 0.0),
    "at the bottom left": (-0.55, 0.55),
    "at the bottom": (0.0, 0.55),
    "at the bottom right": (0.55, 0.55),
}
"""Centre as (x, y), from -1 to 1."""
THINGS = SHAPES[:-1]
"""The shapes that have a place; a frame has none."""
PLACE, RADIUS, COLOUR = slice(2, 4), 4, slice(6, 9)
"""Positions within the numbers of a shape."""
KIND = 1


def shape(rng: random.Random, kind: str, colour: str, place: tuple[float, float], *,
          radius: float | None = None, turn: float | None = None) -> np.ndarray:  # fmt: skip
    """Return a shape near a place; its radius and turn are drawn unless given."""
    numbers = np.zeros(SHAPE_NUMBERS)
    numbers[0], numbers[KIND] = 1, SHAPES.index(kind)
    numbers[PLACE] = near(rng, place)
    numbers[RADIUS] = rng.uniform(0.25, 0.42) if radius is None else radius
    numbers[5] = rng.uniform(-0.2, 0.2) if turn is None else turn
    numbers[COLOUR] = like(rng, colour)
    return numbers


def painted(rng: random.Random, numbers: np.ndarray, colour: str) -> np.ndarray:
    """Return the same shape in another colour."""
    other = numbers.copy()
    other[COLOUR] = like(rng, colour)
    return other


def moved(rng: random.Random, numbers: np.ndarray, place: str) -> np.ndarray:
    """Return the same shape elsewhere."""
    other = numbers.copy()
    other[PLACE] = near(rng, PLACES[place])
    return other


def exchanged(numbers: np.ndarray, kind: str) -> np.ndarray:
    """Return another shape with the same place, size and colour."""
    other = numbers.copy()
    other[KIND] = SHAPES.index(kind)
    return other


def resized(numbers: np.ndarray, factor: float) -> np.ndarray:
    """Return the same shape, larger or smaller."""
    other = numbers.copy()
    other[RADIUS] *= factor
    return other


def like(rng: random.Random, colour: str) -> np.ndarray:
    """Return a shade of a colour, [3] in [0, 1]."""
    return np.clip([channel + rng.uniform(-0.05, 0.05) for channel in COLOURS[colour]], 0, 1)


def near(rng: random.Random, place: tuple[float, float]) -> tuple[float, float]:
    """Return a point close to a place."""
    return place[0] + rng.uniform(-0.06, 0.06), place[1] + rng.uniform(-0.06, 0.06)
