"""How close a result comes to its target: PSNR, and SSIM and LPIPS where what they need is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from statistics import fmean
from typing import Any

from PIL import Image

from difftrain.editing.lpips_distance import SMALLEST, lpips_distance, lpips_is_here
from difftrain.types import Size
from difftrain.validation.psnr import psnr

WITHOUT_SSIM = "SSIM is not measured: scikit-image is not installed; pip install 'difftrain[metrics]'"
SMALLEST_FOR_SSIM = 11
"""Edge of the window that SSIM compares, in pixels."""


def measures_ssim() -> bool:
    return find_spec("skimage") is not None


def measure(image: Image.Image, target: Image.Image, *, size: Size | None = None) -> dict[str, float]:
    """Return ``psnr`` in dB, at most 100, and ``ssim``, at most 1; higher is closer. And ``lpips``; lower is closer.

    Args:
        size: (width, height) of the comparison, to which both are brought; default: the image's.

    Source of SSIM:
        Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004: Gaussian weights
        of deviation 1.5; the mean over the channels of RGB.
    """
    size = size or image.size
    found = {"psnr": psnr(image, target, size=size)}
    if measures_ssim() and min(size) >= SMALLEST_FOR_SSIM:
        found["ssim"] = _ssim(*(_sized(one, size) for one in (image, target)))
    if lpips_is_here() and min(size) >= SMALLEST:
        found["lpips"] = lpips_distance(*(_sized(one, size) for one in (image, target)))
    return {name: round(value, 4) for name, value in found.items()}


def _sized(image: Image.Image, size: Size) -> Image.Image:
    image = image.convert("RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _ssim(image: Image.Image, target: Image.Image) -> float:
    import numpy as np

    metrics: Any = import_module("skimage.metrics")  # an extra, without types
    ours, theirs = (np.asarray(one) for one in (image, target))
    return float(
        metrics.structural_similarity(
            ours,
            theirs,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def means(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over results that all have it; empty without results."""
    every: Sequence[Mapping[str, float]] = list(values)
    return {name: round(fmean(one[name] for one in every), 4) for name in (every[0] if every else ())}


def described(values: Mapping[str, float]) -> str:
    """Return ``23.1 dB, SSIM 0.812, LPIPS 0.123``, as far as they are measured."""
    texts = {"psnr": "{:.1f} dB", "ssim": "SSIM {:.3f}", "lpips": "LPIPS {:.3f}"}
    return ", ".join(texts[name].format(value) for name, value in values.items())
