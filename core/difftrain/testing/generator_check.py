"""Tests the contract of conditioning generators."""

from __future__ import annotations

import random
from typing import Any

from PIL import Image

from difftrain.contracts import ConditioningGenerator
from difftrain.testing.example_images import draw_image
from difftrain.types import Size

SIZES: tuple[Size, ...] = ((64, 48), (37, 51))


def check_generator(generator: ConditioningGenerator | type[ConditioningGenerator], **options: Any) -> None:
    """Assert everything the core relies on in a conditioning generator.

    Equal random state gives equal bytes, the result is RGB of the target's size, the target itself and the
    process's own random state are unchanged, and the options survive JSON.

    Args:
        generator: An instance, or a class to build with ``options``.

    Raises:
        AssertionError: Says what is broken.
    """
    made = generator(**options) if isinstance(generator, type) else generator
    for size in SIZES:
        _check_images(made, draw_image(size, seed=1))
    cls = type(made)
    again = cls.model_validate_json(made.model_dump_json())
    assert again.identity() == made.identity(), f"options of {cls.name!r} do not survive JSON: {made.identity()}"


def _check_images(generator: ConditioningGenerator, target: Image.Image) -> None:
    name = type(generator).name
    before, global_state = target.tobytes(), random.getstate()
    first = generator.generate(target, random.Random(7))
    second = generator.generate(target, random.Random(7))
    assert target.tobytes() == before, f"{name!r} changes its input"
    assert random.getstate() == global_state, f"{name!r} draws from the global random state; use only `rng`"
    assert first.mode == "RGB", f"{name!r} gives mode {first.mode}, not RGB"
    assert first.size == target.size, f"{name!r} gives {first.size} for a target of {target.size}"
    assert first.tobytes() == second.tobytes(), f"{name!r} gives other pixels for equal random state"
