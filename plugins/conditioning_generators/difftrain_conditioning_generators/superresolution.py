"""``superresolution``: a blurred, noisy, perhaps small and compressed copy; the model learns to sharpen it."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from difftrain import ConditioningGenerator, hookimpl
from difftrain_conditioning_generators._noise import add_noise

if TYPE_CHECKING:
    from PIL import Image

_BOTH_SCALE = 0.7
"""``blur_type: both`` blurs twice, each time with this share of the radius."""


class Superresolution(ConditioningGenerator):
    """Lowers the resolution of the target: smaller, blurred, noisy, compressed, in this order."""

    name: ClassVar[str] = "superresolution"
    aliases: ClassVar[tuple[str, ...]] = ("super_resolution", "lowres")
    version: ClassVar[int] = 1

    blur_radius: float = Field(default=2.0, ge=0)
    """In pixels; 0 is no blur."""
    blur_type: Literal["gaussian", "box", "both"] = "gaussian"
    """Shape of the blur; both is a box blur followed by a gaussian one, each with 0.7 of the radius."""
    add_noise: bool = True
    """Add gaussian noise after the blur."""
    noise_level: float = Field(default=0.02, ge=0, le=1)
    """Standard deviation of the noise; 1 is the whole range from black to white."""
    jpeg_quality: int | None = Field(default=None, ge=1, le=100)
    """Compress last, with this quality; null is no compression."""
    downscale_factor: float | None = Field(default=None, ge=1)
    """Shrink by this factor and enlarge again, bilinear, before the blur; null is no shrinking."""

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        image = self._blurred(self._shrunk(image))
        if self.add_noise and self.noise_level > 0:
            image = add_noise(image, self.noise_level, rng)
        return image if self.jpeg_quality is None else _compressed(image, self.jpeg_quality)

    def _shrunk(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        if self.downscale_factor is None:
            return image
        small = tuple(max(1, round(edge / self.downscale_factor)) for edge in image.size)
        shrunk = image.resize((small[0], small[1]), Image.Resampling.BILINEAR)
        return shrunk.resize(image.size, Image.Resampling.BILINEAR)

    def _blurred(self, image: Image.Image) -> Image.Image:
        from PIL import ImageFilter

        if self.blur_radius == 0:
            return image
        if self.blur_type == "gaussian":
            return image.filter(ImageFilter.GaussianBlur(self.blur_radius))
        if self.blur_type == "box":
            return image.filter(ImageFilter.BoxBlur(self.blur_radius))
        part = self.blur_radius * _BOTH_SCALE
        return image.filter(ImageFilter.BoxBlur(part)).filter(ImageFilter.GaussianBlur(part))


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    from PIL import Image

    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@hookimpl
def difftrain_conditioning_generators() -> Iterable[type[ConditioningGenerator]]:
    return (Superresolution,)
