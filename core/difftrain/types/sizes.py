"""How large images are, and how they are resized and cropped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

Size = tuple[int, int]
"""(width, height) in pixels."""

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of an upright source image; fractions are allowed."""

Point = tuple[float, float]
"""(x, y) in shares of an upright image's width and height: (0, 0) is its upper left corner, (1, 1) its lower right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One of several pictures of equal width that stand side by side in one image."""

    index: int
    """From 0, at the left."""
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"{self} does not exist; panels count from 0")

    def __str__(self) -> str:
        return f"panel {self.index} of {self.count}"

    def size_in(self, whole: Size) -> Size:
        """Return the panel's size; columns of pixels that the panels cannot share equally are left over at the right.

        Raises:
            ValueError: If the image has fewer columns than panels.
        """
        width = whole[0] // self.count
        if width == 0:
            raise ValueError(f"an image {whole[0]} pixels wide has no {self.count} panels")
        return width, whole[1]

    def box_in(self, whole: Size) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) in pixels of the whole upright image.

        Raises:
            ValueError: As :meth:`size_in`.
        """
        width, height = self.size_in(whole)
        return self.index * width, 0, (self.index + 1) * width, height


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryRules:
    """How a dataset entry wants its images sized; input of :func:`difftrain.data.buckets.assign_bucket`."""

    resolution: float
    """In the unit of ``resolution_type``."""
    resolution_type: str
    """``pixel``: the shorter edge. ``area``: megapixels. ``pixel_area``: the edge of a square of that area."""
    alignment: int
    """Bucket edges are multiples of this, in pixels."""
    crop: bool = False
    crop_style: str = "center"
    """``center``, ``corner``, ``random``, or ``focus``: around :attr:`focus`."""
    focus: Point | None = None
    """A point of the one image to be placed, which a crop of style ``focus`` keeps as near to its centre as the image's
    edges allow; None is the centre."""
    crop_aspect: str = "preserve"
    crop_aspect_buckets: tuple[float, ...] = ()
    maximum_image_size: float | None = None
    """In the unit of ``resolution_type``; a larger image is first reduced to ``target_downsample_size``."""
    target_downsample_size: float | None = None

    @property
    def draws(self) -> bool:
        """Whether an image's crop is drawn at random, beside following from its size."""
        return self.crop and "random" in (self.crop_style, self.crop_aspect)


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """From the upright source image to the bucket: one resize, then one crop."""

    resize: Size
    crop: tuple[int, int]
    """(left, top) of the crop box, in the resized image."""
    bucket: Size
    """Size of the crop box, and so of the encoded image."""

    def __post_init__(self) -> None:
        for axis in (0, 1):
            if not 0 <= self.crop[axis] <= self.resize[axis] - self.bucket[axis]:
                raise ValueError(f"crop box {self.crop}+{self.bucket} lies outside the resized image {self.resize}")

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as :meth:`PIL.Image.Image.crop` takes it."""
        left, top = self.crop
        return left, top, left + self.bucket[0], top + self.bucket[1]

    @property
    def identity(self) -> str:
        """Part of the cache key."""
        return _identity(self.resize, self.crop, self.bucket)


@lru_cache(maxsize=1024)
def _identity(resize: Size, crop: tuple[int, int], bucket: Size) -> str:
    """Cached, since millions of images share a few geometries."""
    return f"{resize}{crop}{bucket}"
