"""Gaussian noise that is the same on every machine and under every numpy version.

numpy keeps the raw bits of a bit generator stable between versions, but not its normal distribution; so a table
turns the bits into normal numbers here. That is faster, too.
"""

from __future__ import annotations

import functools
import random
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_BLOCK = 8
"""Edge in pixels of the blocks that JPEG compresses separately."""


def add_noise(image: Image.Image, level: float, rng: random.Random) -> Image.Image:
    """Add independent noise to every pixel and channel.

    Args:
        image: RGB.
        level: Standard deviation; 1.0 is the whole range of a channel.
        rng: Source of randomness.
    """
    return _added(image, _normal((image.height, image.width, 3), rng) * (level * 255))


def add_block_noise(image: Image.Image, level: float, rng: random.Random) -> Image.Image:
    """Add one grey offset to every 8x8 block, so that block edges show.

    Args:
        image: RGB.
        level: Standard deviation; 1.0 is the whole range of a channel.
        rng: Source of randomness.
    """
    rows, columns = -(-image.height // _BLOCK), -(-image.width // _BLOCK)
    offsets = _normal((rows, columns), rng) * (level * 255)
    every_pixel = offsets.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)[: image.height, : image.width]
    return _added(image, every_pixel[:, :, None])


def _added(image: Image.Image, noise: np.ndarray[Any, Any]) -> Image.Image:
    """Round rather than truncate, or the image would darken by half a step."""
    import numpy as np
    from PIL import Image

    noisy = np.rint(np.asarray(image, dtype=np.float32) + noise)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _normal(shape: tuple[int, ...], rng: random.Random) -> np.ndarray[Any, Any]:
    """Return standard normal numbers, float32, from 16 random bits each."""
    import numpy as np

    count = int(np.prod(shape))
    raw = np.random.PCG64(rng.getrandbits(128)).random_raw(-(-count // 4))
    bits = raw.astype("<u8").view("<u2")[:count]
    return np.asarray(_normal_table()[bits]).reshape(shape)


@functools.cache
def _normal_table() -> np.ndarray[Any, Any]:
    """Return the normal number for each of 65,536 equally likely outcomes; the outermost are at 4.3."""
    import numpy as np

    normal = NormalDist()
    upper = np.array([normal.inv_cdf((index + 0.5) / 65536) for index in range(32768, 65536)])
    return np.concatenate([-upper[::-1], upper]).round(6).astype(np.float32)
