"""A target image with its references and captions."""

from __future__ import annotations

from dataclasses import dataclass

from difftrain.types.sizes import Geometry
from difftrain.types.source_images import ImageRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedImage:
    """An image and the geometry that it is encoded with."""

    record: ImageRecord
    geometry: Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceChoice:
    """One way to condition a sample; a sample with several draws one per epoch."""

    references: tuple[PlacedImage, ...]
    captions: tuple[str, ...] | None = None
    """Captions of the reference set or generator; None takes the target's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One training example: a target image, the ways to condition it, and its captions."""

    dataset_id: str
    target: PlacedImage
    captions: tuple[str, ...]
    choices: tuple[ReferenceChoice, ...] = (ReferenceChoice(references=()),)
    """Never empty; a sample without references has one choice with none."""

    def __post_init__(self) -> None:
        assert self.choices, "a sample has at least one choice, even an empty one"
