"""The largest batch of a run and the run's length, for a forecast. Reads data, writes nothing, imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difftrain.config.schema import RunConfig
from difftrain.contracts import ModelFlavour
from difftrain.data.buckets import assign_bucket
from difftrain.data.samples.prepare_samples import pair_samples
from difftrain.data.streaming.coming_batches import coming_shapes
from difftrain.data.streaming.epoch import encoded_area, largest_area
from difftrain.errors import DataError
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.data_forecast import DataForecast, forecast_data
from difftrain.startup.run_length import rounds_of, steps_left, total_steps
from difftrain.types import GeometryRules, PlacedImage, Reporter, Sample, Size

SQUARE = (4096, 4096)
"""An image of this size stands for those that are not there: it is reduced to the resolution."""


@dataclass(frozen=True, kw_only=True)
class LargestBatch:
    """What a forecast needs to know about the data."""

    target: Size
    references: tuple[Size, ...]
    samples: int
    shapes: int
    """How many shapes the batches of the run have."""
    steps: int | None
    """Optimizer steps of the run on one card; None if that needs the data."""
    source: str
    """Where the sizes come from, for the user."""
    data: DataForecast | None = None
    """What the data gives; None if it is not there, or cannot be used yet."""


def shape_of_run(plan: RunPlan, reporter: Reporter) -> LargestBatch:
    """Return the largest batch of the run's data; if that cannot be read, what the config says.

    Raises:
        DataError: If the epochs of the run have no sample.
    """
    try:
        paired = pair_samples(plan.data, reporter=reporter)
    except DataError as error:
        why = str(error).splitlines()[0]
        return _assumed(
            plan.config, plan.flavour, _widest_rules(plan), f"the data cannot be used yet ({why})", _most(plan)
        )
    samples = paired.samples
    if not samples:
        return _assumed(plan.config, plan.flavour, _widest_rules(plan), "there are no samples to train on", _most(plan))
    rounds = rounds_of(plan, samples)
    sizes = {name: rounds.rules.batch_size_of(name) for name in rounds.names}
    largest = max(samples, key=lambda one: largest_area(one) * sizes[one.dataset_id])
    references = max(
        (choice.references for choice in largest.choices), key=lambda images: sum(map(encoded_area, images))
    )
    steps = total_steps(plan, steps_left(rounds))
    return LargestBatch(
        target=largest.target.geometry.bucket,
        references=_sizes(references),
        samples=sizes[largest.dataset_id],
        shapes=len(coming_shapes(rounds, steps)),
        steps=steps,
        source=f"the largest of {_counted(samples)}",
        data=forecast_data(plan, paired, rounds),
    )


def shape_of_config(config: RunConfig, flavour: ModelFlavour) -> LargestBatch:
    """Return the batch that the config alone describes, for a run without data."""
    return _assumed(
        config, flavour, _rules_of(config), f"{config.data_backend_config} does not exist", config.train_batch_size
    )


def data_is_described(config: RunConfig) -> bool:
    """Return whether the dataset list is there."""
    return Path(config.data_backend_config).is_file()


def _assumed(config: RunConfig, flavour: ModelFlavour, rules: GeometryRules, why: str, samples: int) -> LargestBatch:
    size = assign_bucket(SQUARE, rules).bucket
    references = (size,) if flavour.max_references else ()
    with_reference = " and one reference of that size" if references else ""
    return LargestBatch(
        target=size,
        references=references,
        samples=samples,
        shapes=1,
        steps=config.max_train_steps,
        source=f"assumed from the resolution{with_reference}, because {why}",
    )


def _rules_of(config: RunConfig) -> GeometryRules:
    return GeometryRules(
        resolution=config.resolution,
        resolution_type=config.resolution_type,
        alignment=config.aspect_bucket_alignment,
    )


def _widest_rules(plan: RunPlan) -> GeometryRules:
    """Return the rules of the target set with the largest images."""
    rules = [dataset.rules for dataset in plan.data.target_sets]
    return max(rules, key=lambda one: _area(assign_bucket(SQUARE, one).bucket), default=_rules_of(plan.config))


def _most(plan: RunPlan) -> int:
    """Return the largest batch size of a target set."""
    return max(dataset.config.train_batch_size or plan.config.train_batch_size for dataset in plan.data.target_sets)


def _area(size: Size) -> int:
    return size[0] * size[1]


def _sizes(images: Sequence[PlacedImage]) -> tuple[Size, ...]:
    return tuple(image.geometry.bucket for image in images)


def _counted(samples: Sequence[Sample]) -> str:
    return "1 sample" if len(samples) == 1 else f"{len(samples)} samples"
