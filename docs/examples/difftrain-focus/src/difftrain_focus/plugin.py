"""The whole plugin: one crop style, and the hook that lists it.

difftrain imports this module at every start, so keep it light: the standard library, difftrain and nothing slow. A
detector of faces would be loaded where it is first used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from difftrain import CropStyle, Point, hookimpl

if TYPE_CHECKING:
    from PIL import Image


class Brightest(CropStyle):
    """Put the crop around the brightest part of the image."""

    name: ClassVar[str] = "brightest"
    version: ClassVar[int] = 1  # raise it when points change; images are then looked at again

    brightest_cells: int = Field(default=8, ge=2, le=64)
    """Parts that each edge is divided into; the brightest of the parts is in the middle of the crop."""

    def focus(self, image: Image.Image) -> Point | None:
        from PIL import Image as pillow

        cells = self.brightest_cells
        means = image.convert("F").resize((cells, cells), pillow.Resampling.BOX)
        darkest, brightest = means.getextrema()
        if darkest == brightest:
            return None
        # of several, the first from the top
        row, column = next(
            (row, column)
            for row in range(cells)
            for column in range(cells)
            if means.getpixel((column, row)) == brightest
        )
        return (column + 0.5) / cells, (row + 0.5) / cells


@hookimpl
def difftrain_crop_styles() -> Iterable[type[CropStyle]]:
    return (Brightest,)
