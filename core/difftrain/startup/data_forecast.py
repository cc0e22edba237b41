"""What `difftrain plan` says about the data: an epoch, its shapes, and the room that the caches take. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from difftrain.data.caching.sample_caches import SampleCaches, TextItem, every_image
from difftrain.data.samples.prepare_samples import PairedData
from difftrain.data.streaming.rounds import Rounds
from difftrain.errors import ModelError
from difftrain.machine.disk import Need
from difftrain.model.flavour_match import is_here
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.encoded_form import room_needed
from difftrain.startup.validated import texts_of_run, validated
from difftrain.types import ModelLocation, PlacedImage, Size

Shape = tuple[Size, tuple[Size, ...]]
"""Encoded sizes of a target and its references."""


@dataclass(frozen=True, kw_only=True)
class DataForecast:
    """What the data of a run gives, on one device."""

    samples: int
    batches_per_epoch: int
    batches_full: float
    """Share of the places in batches that hold a sample."""
    steps_per_epoch: int
    shapes: Sequence[tuple[Shape, int]]
    """Samples of each shape in the first epoch, most first."""
    caches: Sequence[Need]
    """What the caches hold in the end, whatever is in them already."""


def forecast_data(plan: RunPlan, paired: PairedData, rounds: Rounds) -> DataForecast:
    """Return what is known about the first epoch and the caches, from the samples."""
    samples = paired.samples
    batches = rounds.batches_of(0)
    counts: Counter[Shape] = Counter()
    for batch, times in batches.kinds():
        references = tuple(image.geometry.bucket for image in batch[0].references)
        counts[batch[0].sample.target.geometry.bucket, references] += len(batch) * times
    return DataForecast(
        samples=len(samples),
        batches_per_epoch=len(batches),
        batches_full=batches.fill_share,
        steps_per_epoch=-(-len(batches) // plan.config.gradient_accumulation_steps),
        shapes=counts.most_common(),
        caches=_caches(plan, paired),
    )


def _caches(plan: RunPlan, paired: PairedData) -> list[Need]:
    samples, used = paired.samples, validated(plan, paired)
    view = plan.family.text_view
    caches = SampleCaches(
        plan.data,
        image_identity="",
        text_identity="",
        text_view=(lambda size: view(size, flavour=plan.flavour)) if plan.family.text_sees_references else None,
    )
    texts: dict[tuple[Path, str], TextItem] = {}
    for item in texts_of_run(plan, caches, samples, used.measured, used.scenes):
        cache, key = caches.text(item)
        texts.setdefault((cache.folder, key), item)
    encoded = every_image(chain(samples, used.measured))
    images = {_entry(caches, image): image for image in encoded if caches.stores(image)}
    return room_needed(
        plan, plan.data, _location(plan), caches, texts=list(texts.values()), images=list(images.values())
    )


def _entry(caches: SampleCaches, image: PlacedImage) -> tuple[Path, str]:
    cache, key = caches.latents(image)
    return cache.folder, key


def _location(plan: RunPlan) -> ModelLocation:
    """Return where a model on this machine is, whose files say how large encodings are; nothing is downloaded."""
    name = plan.config.pretrained_model_name_or_path or plan.flavour.hub_id
    if is_here(name) or "/" not in name:
        try:
            return plan.family.locate(name, plan.flavour)
        except ModelError:  # `difftrain check` and the run say what is wrong with it
            pass
    return ModelLocation(name=name, identity="", path=None)
