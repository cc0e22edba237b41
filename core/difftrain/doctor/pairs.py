"""A target image beside one of its references, as the pair doctor compares them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from difftrain.types import Geometry, ImageRecord, PlacedImage, Sample

SAME_ASPECT = 0.02
"""Relative difference up to which two shapes count as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One target image and one of its references; a target without any is a pair with none."""

    target: PlacedImage
    reference: PlacedImage | None
    captions: tuple[str, ...]
    """What may be drawn with this reference."""
    is_used: bool = True
    """False for an image that no sample has, shown because something is wrong with it."""

    @property
    def dataset(self) -> str:
        return self.target.record.dataset_id

    @property
    def is_comparable(self) -> bool:
        """Whether the encoded images have one shape, so that their pixels can be compared."""
        if self.reference is None:
            return False
        return aspects_differ(self.target.geometry.bucket, self.reference.geometry.bucket) <= SAME_ASPECT

    @property
    def is_made(self) -> bool:
        """Whether a generator of the target's dataset, whose id is DATASET/NAME, made the reference from the target."""
        return self.reference is not None and self.reference.record.dataset_id.startswith(f"{self.dataset}/")

    @property
    def key(self) -> str:
        """What a comparison of the pixels depends on."""
        assert self.reference is not None, "only pairs with a reference are compared"
        target, reference = self.target, self.reference
        return (
            f"{target.record.content_hash} {target.geometry.identity} "
            f"{reference.record.content_hash} {reference.geometry.identity}"
        )


def pairs_of(samples: Iterable[Sample]) -> Iterator[Pair]:
    """Yield the pairs of each sample, each reference once."""
    for sample in samples:
        seen: set[str] = set()
        for choice in sample.choices:
            captions = sample.captions if choice.captions is None else choice.captions
            for reference in choice.references:
                if identity(reference.record) not in seen:
                    seen.add(identity(reference.record))
                    yield Pair(target=sample.target, reference=reference, captions=captions)
        if not seen:
            yield Pair(target=sample.target, reference=None, captions=sample.captions)


def lone(record: ImageRecord) -> Pair:
    """Return an image that is in no sample, whole."""
    whole = Geometry(resize=record.size, crop=(0, 0), bucket=record.size)
    target = PlacedImage(record=record, geometry=whole)
    return Pair(target=target, reference=None, captions=record.captions or (), is_used=False)


def identity(record: ImageRecord) -> str:
    """Return what names an image among all datasets."""
    return f"{record.dataset_id}\n{record.image.key}"


def aspects_differ(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Return by which share the wider of two shapes is wider than the other."""
    one, other = first[0] * second[1], second[0] * first[1]
    return max(one, other) / min(one, other) - 1
