"""Crops that are drawn again in each epoch: ``vae_cache_clear_each_epoch``. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from difftrain.contracts import Pairing
from difftrain.data.buckets import assign_bucket, focused
from difftrain.data.entries.data_plan import DataPlan, DatasetPlan
from difftrain.data.seeding import derive_seed
from difftrain.types import Geometry, GeometryRules, ImageRecord, PlacedImage, ReferenceChoice, Sample


@dataclass(frozen=True, kw_only=True)
class _Follower:
    """How the references of one set or generator follow their target."""

    pairing: Pairing
    rules: GeometryRules


class NewCrops:
    """Gives the samples of some sets another crop in each epoch; those of the first epoch stay as they were placed.

    References are placed anew by their pairing, so that those of ``reference_strict`` stay aligned.
    """

    def __init__(self, plan: DataPlan) -> None:
        self._seed = plan.seed
        self._fits_target = plan.references_fit_target
        self._sets = {one.id: one for one in plan.target_sets if one.draws_each_epoch}
        self._followers: dict[str, _Follower] = {}
        for one in plan.datasets:
            pairing = one.pairing or one.row_pairing
            if pairing is not None:
                self._followers[one.id] = _Follower(pairing=pairing, rules=one.rules)
            for generator in one.generators:
                self._followers[generator.id] = _Follower(pairing=generator.pairing, rules=one.rules)

    def __bool__(self) -> bool:
        """Return whether any set has new crops."""
        return bool(self._sets)

    def concern(self, sample: Sample) -> bool:
        """Return whether a sample has another crop in each epoch."""
        return sample.dataset_id in self._sets

    def __call__(self, sample: Sample, epoch: int) -> Sample:
        """Return a sample as an epoch shows it; epochs count from 0."""
        dataset = self._sets.get(sample.dataset_id)
        if dataset is None or epoch == 0:
            return sample
        target = PlacedImage(record=sample.target.record, geometry=self._crop(dataset, sample.target.record, epoch))
        choices = tuple(
            replace(choice, references=tuple(self._follow(target, image) for image in choice.references))
            for choice in sample.choices
        )
        if self._fits_target and not all(_fits(choice, target) for choice in choices):
            return sample
        return replace(sample, target=target, choices=choices)

    def _crop(self, dataset: DatasetPlan, record: ImageRecord, epoch: int) -> Geometry:
        draw = random.Random(derive_seed(self._seed, "crop", record.content_hash, epoch))
        return assign_bucket(record.size, focused(dataset.rules, record.focus), draw=draw)

    def _follow(self, target: PlacedImage, reference: PlacedImage) -> PlacedImage:
        follower = self._followers[reference.record.dataset_id]
        geometry = follower.pairing.place(
            target=target.record,
            target_geometry=target.geometry,
            reference=reference.record,
            own_rules=focused(follower.rules, reference.record.focus),
        )
        return replace(reference, geometry=geometry)


def _fits(choice: ReferenceChoice, target: PlacedImage) -> bool:
    return all(image.geometry.bucket == target.geometry.bucket for image in choice.references)
