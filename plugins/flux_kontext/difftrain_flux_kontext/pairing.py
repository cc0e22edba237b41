"""``reference_strict`` and ``reference_loose``: how a reference follows its target image."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from difftrain import (
    Geometry,
    GeometryRules,
    ImageRecord,
    Pairing,
    PairingError,
    Size,
    assign_bucket,
    cover_bucket,
)
from difftrain_flux_kontext.flavour import Kontext

_ASPECT_TOLERANCE = 0.01


def nearest_preferred_size(size: Size) -> Size:
    """Return the preferred size with the nearest aspect, chosen as in the stock pipeline."""
    aspect = size[0] / size[1]
    return min(Kontext.preferred_sizes, key=lambda preferred: (abs(aspect - preferred[0] / preferred[1]), preferred))


class ReferenceStrict(Pairing):
    """The reference gets exactly the target image's resize and crop, so that pixels stay aligned."""

    name: ClassVar[str] = "reference_strict"

    @property
    def crops_by_own_rules(self) -> bool:
        return False

    def place(
        self,
        *,
        target: ImageRecord,
        target_geometry: Geometry,
        reference: ImageRecord,
        own_rules: GeometryRules,
    ) -> Geometry:
        # own_rules is ignored: anything computed again could differ by a pixel. A reference with another pixel
        # size goes straight to the target's resize size, in one resize.
        if not _same_aspect(reference.size, target.size):
            raise PairingError(
                f"{reference.name} is {reference.width}x{reference.height}, "
                f"but its target image is {target.width}x{target.height}"
            )
        return target_geometry


class ReferenceLoose(Pairing):
    """The reference is sized by its own dataset entry; it need not be aligned with the target image.

    With ``crop_style: random`` a reference's crop is drawn separately, seeded only by its content: the run's seed
    changes the crops of target images, not those of loose references.
    """

    name: ClassVar[str] = "reference_loose"

    reference_resolution: Literal["own", "kontext", "same"] = "own"
    """own follows the reference's entry, kontext uses the nearest of the pipeline's sizes, as in inference, and
    same follows the target image's bucket."""
    reference_shapes: int | None = Field(None, ge=1, le=99)
    """With own: crop references at the centre to the nearest of so many aspects, from 9:16 to 16:9, so that more
    samples share a batch; 5 are 9:16, 3:4, 1:1, 4:3 and 16:9. Default: every reference keeps its aspect."""

    @model_validator(mode="after")
    def _shapes_are_of_own_sizes(self) -> Self:
        if self.reference_shapes is not None and self.reference_resolution != "own":
            raise ValueError(
                f"reference_shapes {self.reference_shapes} needs reference_resolution = own; with "
                f"{self.reference_resolution} references have few sizes already"
            )
        return self

    @property
    def crops_by_own_rules(self) -> bool:
        return self.reference_resolution == "own" and self.reference_shapes is None

    def place(
        self,
        *,
        target: ImageRecord,
        target_geometry: Geometry,
        reference: ImageRecord,
        own_rules: GeometryRules,
    ) -> Geometry:
        if self.reference_resolution == "same":
            return cover_bucket(reference.size, target_geometry.bucket)
        if self.reference_resolution == "kontext":
            size = nearest_preferred_size(reference.size)
            return Geometry(resize=size, crop=(0, 0), bucket=size)
        if self.reference_shapes is not None:
            return assign_bucket(reference.size, _cropped_to(own_rules, even_aspects(self.reference_shapes)))
        return assign_bucket(reference.size, own_rules, draw=random.Random(reference.content_hash))


def even_aspects(count: int) -> tuple[float, ...]:
    """Return aspects from 9:16 to 16:9 in equal ratios; a single one is 1:1."""
    if count == 1:
        return (1.0,)
    return tuple((16 / 9) ** (2 * number / (count - 1) - 1) for number in range(count))


def _cropped_to(rules: GeometryRules, aspects: tuple[float, ...]) -> GeometryRules:
    return replace(rules, crop=True, crop_style="center", crop_aspect="closest", crop_aspect_buckets=aspects)


def _same_aspect(size: Size, other: Size) -> bool:
    """Return whether two aspects agree within 1 %."""
    ratio = (size[0] * other[1]) / (size[1] * other[0])
    return max(ratio, 1 / ratio) <= 1 + _ASPECT_TOLERANCE
