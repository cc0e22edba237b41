"""Prepares references for a text encoder: the encoded part of each, in the size that the family asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from difftrain.data.files.pixels import load_part, load_placed
from difftrain.errors import PluginError
from difftrain.types import Box, Geometry, PlacedImage, Size

if TYPE_CHECKING:
    from PIL import Image


def source_box(source: Size, geometry: Geometry) -> Box:
    """Return the part of the source image that a geometry shows. Pure.

    Args:
        source: Upright size of the image.
        geometry: How it is resized and cropped.

    Returns:
        The crop box, mapped back through the resize; inside the image.
    """
    left, top, right, bottom = geometry.box
    across, down = geometry.resize
    return left * source[0] / across, top * source[1] / down, right * source[0] / across, bottom * source[1] / down


class TextViews:
    """The views of one family: for every reference its pixels, and its identity in a cache key."""

    def __init__(self, text_view: Callable[[Size], Size]) -> None:
        """Take :meth:`~difftrain.contracts.ModelFamily.text_view` of the family."""
        self._text_view = text_view

    def identity(self, image: PlacedImage) -> str:
        """Return content and view of an image as text; equal texts mean equal pixels."""
        size = self.size(image)
        if size == image.geometry.bucket:
            return f"{image.record.content_hash}{image.geometry.identity}"
        return f"{image.record.content_hash}{source_box(image.record.size, image.geometry)}{size}"

    def load(self, image: PlacedImage) -> Image.Image:
        """Return the pixels: those that are encoded if the sizes are equal, else resized once from the source image.

        Raises:
            DataError: If the file cannot be read; names it.
        """
        size = self.size(image)
        if size == image.geometry.bucket:
            return load_placed(image)
        return load_part(image.record, source_box(image.record.size, image.geometry), size)

    def size(self, image: PlacedImage) -> Size:
        """Return the size of an image for the text encoder.

        Raises:
            PluginError: If the family returns no valid size.
        """
        given = image.geometry.bucket
        match self._text_view(given):
            case (int(width), int(height)) if width > 0 and height > 0:
                return width, height
            case wrong:
                raise PluginError(
                    f"text_view() of the model family returned {wrong!r} for a reference of {given[0]}x{given[1]}; "
                    "it must return (width, height) in whole pixels"
                )
