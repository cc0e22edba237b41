"""Tests the contract of crop styles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from difftrain.contracts import CropStyle
from difftrain.testing.example_images import draw_image
from difftrain.types import Size

SIZES: tuple[Size, ...] = ((64, 48), (37, 51), (1, 1))


def check_crop_style(style: CropStyle | type[CropStyle], **options: Any) -> None:
    """Assert everything the core relies on in a crop style.

    Equal images give equal points, in other threads too; a point is None or lies in the image; the image is unchanged,
    and the options survive JSON.

    Args:
        style: An instance, or a class to build with ``options``.

    Raises:
        AssertionError: Says what is broken.
    """
    made = style(**options) if isinstance(style, type) else style
    name = type(made).name
    for number, size in enumerate(SIZES):
        image = draw_image(size, seed=number)
        before = image.tobytes()
        point = made.focus(image)
        assert image.tobytes() == before, f"{name!r} changes the image"
        assert point is None or _is_inside(point), f"{name!r} gives {point!r}, not shares of the image's edges, or None"
        with ThreadPoolExecutor(4) as pool:
            again = list(pool.map(made.focus, [image.copy() for _ in range(4)]))
        assert again == [point] * 4, f"{name!r} gives {again} for one image, which gave {point!r} before"
    rebuilt = type(made).model_validate_json(made.model_dump_json())
    assert rebuilt.identity() == made.identity(), f"options of {name!r} do not survive JSON: {made.identity()}"


def _is_inside(point: object) -> bool:
    return isinstance(point, tuple) and len(point) == 2 and all(0 <= share <= 1 for share in point)
