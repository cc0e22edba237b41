"""LPIPS, where the package `lpips` is installed and the network that it compares with is on this machine already.

No package has that network's weights with it: `lpips` lets torchvision download them, and nothing is downloaded here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

SMALLEST = 64
"""Edge of the smallest images that the network takes, in pixels."""
_BACKBONE = "alexnet-owt-7be5be79.pth"
"""torchvision's file of AlexNet, 233 MB."""


def lpips_is_here() -> bool:
    """Return whether all that it needs is on this machine. Imports no torch."""
    return _package_is_here() and (_torch_hub() / _BACKBONE).is_file()


def without_lpips() -> str | None:
    """Return why it is not measured, for users who have installed the package; None for others."""
    if not _package_is_here() or lpips_is_here():
        return None
    return (
        f"LPIPS is not measured: {_torch_hub() / _BACKBONE} is not there; to download it (233 MB): "
        "python -c \"import torchvision; torchvision.models.alexnet(weights='IMAGENET1K_V1')\""
    )


def lpips_distance(image: Image.Image, target: Image.Image) -> float:
    """Return the distance of two images of one size, 0 if they look equal.

    Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv:1801.03924;
    version 0.1 with AlexNet, as papers report it.
    """
    return _measure()(image, target)


@cache
def _measure() -> Callable[[Image.Image, Image.Image], float]:
    import torch

    from difftrain.data.files.pixels import to_pixels

    library: Any = import_module("lpips")  # optional, without types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision by a name that will go
        network = library.LPIPS(net="alex", verbose=False).eval()

    def measure(image: Image.Image, target: Image.Image) -> float:
        ours, theirs = (torch.from_numpy(to_pixels(one))[None] for one in (image, target))
        with torch.no_grad():
            return float(network(ours, theirs))

    return measure


def _package_is_here() -> bool:
    return find_spec("lpips") is not None and find_spec("torchvision") is not None


def _torch_hub() -> Path:
    """Return where torch keeps downloaded weights, as `torch.hub.get_dir()` does."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{caches}/torch")
    return Path(home).expanduser() / "hub" / "checkpoints"
