"""How much memory encoding takes beside a step, where images are encoded while the model trains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from difftrain.training.frozen_encoders import Encoders
from difftrain.types import PlacedImage, Reporter


def room_to_encode(
    images: Sequence[PlacedImage], encoders: Encoders, device: torch.device, reporter: Reporter
) -> float:
    """Return the bytes of the image encoder with the largest of the images, by encoding one of its size.

    To be called while nothing else is on the device.

    Args:
        images: Those that are encoded on demand; without any, or on a CPU, nothing is tried.
    """
    if device.type != "cuda" or not images:
        return 0.0
    width, height = max((image.geometry.bucket for image in images), key=math.prod)
    before = torch.cuda.memory_allocated(device)
    with reporter.phase("measure memory of encoding"), encoders.in_use:
        torch.cuda.reset_peak_memory_stats(device)
        encoders.image().encode(torch.zeros(1, 3, height, width))
        peak = torch.cuda.max_memory_allocated(device)
        encoders.release()
    torch.cuda.reset_peak_memory_stats(device)
    return float(peak - before)
