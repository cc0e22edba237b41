"""Compares the pixels of one pair as they are encoded, and makes thumbnails on the way."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from difftrain.data.files.pixels import open_or_make
from difftrain.doctor import alignment
from difftrain.doctor.measures import PairMeasures
from difftrain.doctor.pairs import Pair
from difftrain.errors import DataError, MachineError, printable
from difftrain.machine.retries import refusal
from difftrain.types import ImageRecord, PlacedImage

COMPARED_EDGE = 512
"""Longest edge at which images are compared, in pixels."""
NOISE = 6.0
"""Mean difference of a block of 8x8 pixels, of 255, up to which it may be the noise of saving as JPEG again."""
THUMBNAIL_EDGE = 256
_BLOCK = 8


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is still to find out about a pair."""

    pair: Pair
    hashes: bool
    """Whether the pixels of both images are to be hashed."""
    measures: bool
    """Whether the images are to be compared."""
    thumbnails: Mapping[str, Path]
    """Files to write, by the image's content hash."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a task found."""

    pixel_hashes: Mapping[str, str]
    """By content hash."""
    measures: PairMeasures | None
    broken: Mapping[str, str]
    """Why an image cannot be decoded, by content hash."""


def compare(task: Task) -> Compared:
    """Open the images of a pair, each once, and do what the task asks for."""
    pair, hashes, broken = task.pair, dict[str, str](), dict[str, str]()
    opened: dict[str, Image.Image] = {}
    for placed in (pair.target, pair.reference):
        if placed is None or placed.record.content_hash in opened:
            continue
        own = placed.record.content_hash
        try:
            image = opened[own] = open_or_make(placed.record)
        except DataError as error:
            broken[own] = str(error)
            continue
        if task.hashes:
            hashes[own] = pixel_hash(image)
        if own in task.thumbnails:
            write_thumbnail(image, task.thumbnails[own])
    measures = None
    if task.measures and pair.reference is not None and not broken:
        target, reference = (opened[one.record.content_hash] for one in (pair.target, pair.reference))
        measures = measure(pair, target, reference)
    return Compared(pixel_hashes=hashes, measures=measures, broken=broken)


def pixel_hash(image: Image.Image) -> str:
    """Return a hash of size and pixels, whatever file they came from."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()


def write_thumbnail(image: Image.Image, path: Path) -> None:
    """Write a small JPEG of the whole image.

    Raises:
        MachineError: If it cannot be written.
    """
    small = image.copy()
    small.thumbnail((THUMBNAIL_EDGE, THUMBNAIL_EDGE), Image.Resampling.BILINEAR, reducing_gap=2)
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        small.save(temporary, format="JPEG", quality=78)
        temporary.replace(path)
    except OSError as error:
        raise MachineError(refusal(f"{printable(path)} cannot be written", error)) from error


def measure(pair: Pair, target: Image.Image, reference: Image.Image) -> PairMeasures:
    """Return how a target differs from its reference, both upright, over what is encoded of them."""
    assert pair.reference is not None, "there are two images"
    bucket = pair.target.geometry.bucket
    scale = min(1.0, COMPARED_EDGE / max(bucket))
    size = max(_BLOCK, round(bucket[0] * scale)), max(_BLOCK, round(bucket[1] * scale))
    first = _encoded_part(pair.reference, reference, size)
    second = _encoded_part(pair.target, target, size)
    difference = np.abs(np.asarray(first, np.float32) - np.asarray(second, np.float32)).mean(axis=2)
    blocks = _block_means(difference)
    by = alignment.ALIGNED
    if alignment.can_estimate():
        by = alignment.estimate(np.asarray(first.convert("L"), np.float32), np.asarray(second.convert("L"), np.float32))
    return PairMeasures(
        difference=round(float(difference.mean()) / 2.55, 3),
        changed=round(100 * float((blocks > NOISE).mean()), 3),
        right=round(by.right * bucket[0] / size[0], 2),
        down=round(by.down * bucket[1] / size[1], 2),
        zoom=round(by.zoom, 4),
        aligned_by=alignment.METHOD if alignment.can_estimate() else 0,
    )


def _encoded_part(placed: PlacedImage, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    (left, top, right, bottom), resize = placed.geometry.box, placed.geometry.resize
    across, down = image.width / resize[0], image.height / resize[1]
    box = left * across, top * down, right * across, bottom * down
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2)


def _block_means(
    difference: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    height, width = (length // _BLOCK for length in difference.shape)
    whole = difference[: height * _BLOCK, : width * _BLOCK]
    return np.asarray(whole.reshape(height, _BLOCK, width, _BLOCK).mean(axis=(1, 3)), np.float32)


def names_of(record: ImageRecord) -> tuple[str, str]:
    """Return the folder and the file of an image's thumbnail."""
    digest = hashlib.blake2b(record.content_hash.encode(), digest_size=12).hexdigest()
    return digest[:2], f"{digest}.jpg"
