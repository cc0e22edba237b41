"""How close an image is to its target, in decibels. Pure; reads no files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean

from PIL import Image

from difftrain.types import Size

HIGHEST = 100.0
"""dB of equal images, whose PSNR is infinite: it keeps means and JSON finite."""


def psnr(image: Image.Image, target: Image.Image, *, size: Size | None = None) -> float:
    """Return the peak signal-to-noise ratio over RGB, ``10 log10(1 / MSE)`` of pixels in [0, 1]: higher is closer.

    Args:
        image: The image to judge.
        target: What it should be; resized if it has another size.
        size: (width, height) of the comparison; default: the image's.

    Returns:
        dB, at most :data:`HIGHEST`.
    """
    import numpy as np

    size = size or image.size
    ours, theirs = (np.asarray(_resized(image, size), dtype=np.float64) / 255 for image in (image, target))
    error = float(((ours - theirs) ** 2).mean())
    return HIGHEST if error == 0 else min(HIGHEST, 10 * math.log10(1 / error))


def _resized(image: Image.Image, size: Size) -> Image.Image:
    image = image.convert("RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


@dataclass(kw_only=True)
class Scores:
    """PSNR of one validation, in dB."""

    images: dict[str, float] = field(default_factory=dict)
    """For drawn images, the mean over the seeds, by the scene's name; scenes without a target are left out."""
    references: dict[str, float] = field(default_factory=dict)
    """For the reference itself, if it has the target's size: the score of doing nothing."""

    @property
    def mean(self) -> float | None:
        """Return the mean over scenes and seeds; None if no scene has a target."""
        return fmean(self.images.values()) if self.images else None

    @property
    def reference_mean(self) -> float | None:
        """Return the mean; None unless every scene with a result has one: means of different images do not compare."""
        return fmean(self.references.values()) if self.references.keys() == self.images.keys() != set() else None

    def as_metrics(self) -> dict[str, float]:
        """Return ``psnr`` and ``psnr_reference``, as far as they exist."""
        means = {"psnr": self.mean, "psnr_reference": self.reference_mean}
        return {name: round(mean, 3) for name, mean in means.items() if mean is not None}

    def by_image(self) -> dict[str, dict[str, float]]:
        """Return ``psnr`` of each image, if any was measured."""
        return {"psnr": {name: round(value, 3) for name, value in self.images.items()}} if self.images else {}
