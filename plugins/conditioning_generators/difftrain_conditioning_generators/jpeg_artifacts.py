"""``jpeg_artifacts``: a copy that was compressed too much, perhaps several times; the model learns to restore it."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from difftrain import ConditioningGenerator, hookimpl
from difftrain_conditioning_generators._noise import add_block_noise, add_noise

if TYPE_CHECKING:
    from PIL import Image


class JpegArtifacts(ConditioningGenerator):
    """Saves and reloads the target as JPEG: blur, noise, compression rounds, block noise, in this order."""

    name: ClassVar[str] = "jpeg_artifacts"
    aliases: ClassVar[tuple[str, ...]] = ("jpeg", "compression")
    version: ClassVar[int] = 1

    quality_mode: Literal["fixed", "range", "random"] = "fixed"
    """fixed uses quality, range draws from quality_range, random draws from quality_list."""
    quality: int = Field(default=25, ge=1, le=100)
    """libjpeg's scale, 1 is worst."""
    quality_range: tuple[int, int] = (10, 50)
    """Lowest and highest quality, both included."""
    quality_list: tuple[int, ...] = Field(default=(10, 20, 30, 40), min_length=1)
    """Qualities to draw from."""
    compression_rounds: int = Field(default=1, ge=1)
    """How often the image is saved and loaded."""
    round_quality_decay: float = Field(default=0.9, gt=0, le=1)
    """Each further round has this share of the previous round's quality."""
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0", 0, 1, 2] | None = None
    """Resolution of the colours; 0, 1, 2 stand for 4:4:4, 4:2:2, 4:2:0; null is libjpeg's default."""
    progressive: bool = False
    """Save as progressive JPEG."""
    optimize: bool = False
    """Save with optimised tables; the file is smaller, the image is the same."""
    pre_blur: bool = False
    """Blur before compressing."""
    pre_blur_radius: float = Field(default=0.5, ge=0)
    """Radius of this gaussian blur, in pixels."""
    add_noise: bool = False
    """Add gaussian noise before compressing."""
    noise_level: float = Field(default=0.01, ge=0, le=1)
    """Standard deviation of the noise; 1 is the whole range from black to white."""
    enhance_blocks: bool = False
    """Make the 8x8 blocks more visible by adding an offset to each, after compressing."""
    block_noise_level: float = Field(default=0.02, ge=0, le=1)
    """Standard deviation of these offsets; 1 is the whole range from black to white."""

    @model_validator(mode="after")
    def _qualities_exist(self) -> Self:
        low, high = self.quality_range
        if not 1 <= low <= high <= 100:
            raise ValueError(f"quality_range must satisfy 1 <= low <= high <= 100, got [{low}, {high}]")
        wrong = [quality for quality in self.quality_list if not 1 <= quality <= 100]
        if wrong:
            raise ValueError(f"quality_list must have qualities from 1 to 100, got {wrong[0]}")
        return self

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        from PIL import ImageFilter

        if self.pre_blur and self.pre_blur_radius > 0:
            image = image.filter(ImageFilter.GaussianBlur(self.pre_blur_radius))
        if self.add_noise and self.noise_level > 0:
            image = add_noise(image, self.noise_level, rng)
        for quality in self.round_qualities(self._first_quality(rng)):
            image = self._compressed(image, quality)
        if self.enhance_blocks and self.block_noise_level > 0:
            image = add_block_noise(image, self.block_noise_level, rng)
        return image

    def round_qualities(self, first: int) -> list[int]:
        """Return the quality of every round, rounded down, at least 1."""
        # The tiny addition corrects binary fractions: 100 * 0.9 must not become 89.
        decayed = (first * self.round_quality_decay**turn for turn in range(self.compression_rounds))
        return [max(1, int(quality + 1e-9)) for quality in decayed]

    def _first_quality(self, rng: random.Random) -> int:
        if self.quality_mode == "fixed":
            return self.quality
        if self.quality_mode == "range":
            return rng.randint(*self.quality_range)
        return rng.choice(self.quality_list)

    def _compressed(self, image: Image.Image, quality: int) -> Image.Image:
        from PIL import Image

        settings: dict[str, Any] = {"progressive": self.progressive, "optimize": self.optimize}
        if self.subsampling is not None:
            settings["subsampling"] = self.subsampling
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality, **settings)
        return Image.open(buffer).convert("RGB")


@hookimpl
def difftrain_conditioning_generators() -> Iterable[type[ConditioningGenerator]]:
    return (JpegArtifacts,)
