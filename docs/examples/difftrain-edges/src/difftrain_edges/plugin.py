"""The whole plugin: one generator, and the hook that lists it.

difftrain imports this module at every start, so keep it light: the standard library, difftrain and nothing slow.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from difftrain import ConditioningGenerator, hookimpl

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND = {"edges": 0, "contour": 255}
"""Grey level of flat parts, by style."""


class Edges(ConditioningGenerator):
    """Draw the edges of the target, to learn images from line drawings."""

    name: ClassVar[str] = "edges"
    aliases: ClassVar[tuple[str, ...]] = ("lineart",)
    version: ClassVar[int] = 1  # raise it when pixels change; images are then made again

    style: Literal["edges", "contour", "random"] = "edges"
    """Bright lines on black (edges), dark lines on white (contour), or one of the two for each image (random)."""

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        from PIL import ImageFilter, ImageOps

        style = rng.choice(sorted(BACKGROUND)) if self.style == "random" else self.style
        kernel = ImageFilter.FIND_EDGES if style == "edges" else ImageFilter.CONTOUR
        lines = ImageOps.grayscale(image).filter(kernel)
        # Pillow copies the outermost pixels instead of filtering them; uncropped, they would form a frame.
        inner = ImageOps.crop(lines, border=1)
        return ImageOps.expand(inner, border=1, fill=BACKGROUND[style]).convert("RGB")


@hookimpl
def difftrain_conditioning_generators() -> Iterable[type[ConditioningGenerator]]:
    return (Edges,)
