"""The length of a run and what it shows, from its config. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from difftrain.config.schema import DatasetConfig
from difftrain.contracts import ModelFamily
from difftrain.data.packed.packed_samples import PackedSamples
from difftrain.data.packed.sample_table import SampleTable
from difftrain.data.samples.new_crops import NewCrops
from difftrain.data.streaming.rounds import Position, Rounds
from difftrain.data.streaming.set_rules import EpochRules, SetRules
from difftrain.errors import DataError
from difftrain.planning.run_plan import RunPlan
from difftrain.types import Sample

FEWEST_VISITS = 0.01
"""Fewest samples per epoch on average; with fewer, a run would search forever for one."""


def epoch_rules(plan: RunPlan) -> EpochRules:
    """Return the rules of an epoch, from the config."""
    config = plan.config
    return EpochRules(
        seed=config.seed,
        batch_size=config.train_batch_size,
        sets={one.id: replace(set_rules(one.config), by_shelf=plan.data.streams(one)) for one in plan.data.target_sets},
        evenly=config.data_backend_sampling == "uniform",
        caption_dropout=config.caption_dropout_probability,
        reference_dropout=config.reference_dropout_probability,
        placed=crops if (crops := NewCrops(plan.data)) else None,
        batch_key=None if type(plan.family).batch_key is ModelFamily.batch_key else plan.family.batch_key,
    )


def set_rules(entry: DatasetConfig) -> SetRules:
    """Return how the samples of a target set take part."""
    return SetRules(
        repeats=entry.repeats,
        probability=entry.probability,
        batch_size=entry.train_batch_size,
        regularises=entry.is_regularisation_data,
        noise_offset=entry.timestep_sampling_offset,
        strength=1.0 if entry.slider_strength is None else entry.slider_strength,
        start_step=entry.start_step,
        end_step=entry.end_step,
        start_epoch=entry.start_epoch,
        end_epoch=entry.end_epoch,
        ignores_epochs=entry.ignore_epochs,
    )


def trained_as_shown(plan: RunPlan, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples whose target the adapter learns to give at its usual strength; all if there are none.

    The target of a regularisation set is not its image, and a slider's may be what the adapter moves away from.
    """
    rules = {dataset.id: set_rules(dataset.config) for dataset in plan.data.target_sets}
    hidden = {name for name, own in rules.items() if own.regularises or own.strength < 0}
    if not hidden:
        return samples
    return PackedSamples.of(sample for sample in samples if sample.dataset_id not in hidden) or samples


def rounds_of(
    plan: RunPlan, samples: Sequence[Sample], *, start: Position | None = None, step: int = 0, processes: int = 1
) -> Rounds:
    """Return the rounds of a run from a position on, which is after ``step`` optimizer steps, from the config."""
    return Rounds(
        samples=samples,
        rules=epoch_rules(plan),
        start=start or Position(),
        step=step,
        micro_batches=plan.config.gradient_accumulation_steps,
        epochs=plan.config.num_train_epochs,
        processes=processes,
    )


def steps_left(rounds: Rounds) -> int | None:
    """Return optimizer steps to the end of the last epoch; None for a run with a fixed number of steps.

    Raises:
        DataError: If the epochs hardly ever have a sample.
    """
    _check_epochs_show_something(rounds)
    return rounds.steps_left()


def total_steps(plan: RunPlan, left: int | None, step: int = 0) -> int:
    """Return the optimizer steps of the whole run; a run in epochs ends with its last epoch, wherever it resumes.

    Args:
        left: Steps from the run's position to the end of its data; None if there is no end, or it is unknown.
        step: Steps already done.

    Raises:
        DataError: If the epochs have no sample, or their length is unknown.
    """
    if left is None:
        if not plan.config.max_train_steps:
            raise DataError(
                f"num_train_epochs {plan.config.num_train_epochs}: the length of an epoch is unknown for this data\n"
                "hint: set max_train_steps instead"
            )
        return plan.config.max_train_steps
    if left == step == 0:
        raise DataError(
            f"{plan.config.num_train_epochs} epochs have no samples: probability leaves all of them out\n"
            "hint: raise probability or num_train_epochs, or set max_train_steps"
        )
    return step + left


def check_schedule(plan: RunPlan, samples: Sequence[Sample]) -> None:
    """Check that every step of the run has samples, where datasets come and go with steps or epochs.

    Raises:
        DataError: If no dataset is left before the run has all its steps.
    """
    rounds = rounds_of(plan, samples)
    total = plan.config.max_train_steps
    if not (samples and rounds.is_scheduled):
        return
    _check_epochs_show_something(rounds)
    steps, last = 0, None
    for step in islice(rounds.steps(), total):
        steps, last = steps + 1, step[-1].position
    epochs_left = (
        plan.config.num_train_epochs is not None and (last.epoch if last else -1) + 1 < plan.config.num_train_epochs
    )
    if (total and steps < total) or epochs_left:
        reached = f"after step {steps} (epoch {last.epoch + 1})" if last else "in step 1"
        asked = f"max_train_steps is {total}" if total else f"num_train_epochs is {plan.config.num_train_epochs}"
        raise DataError(
            f"no dataset takes part {reached}, but {asked}: {describe_schedule(rounds)}\n"
            "hint: raise or remove end_step or end_epoch of a dataset, lower a start_step, or train for fewer steps"
        )


def describe_schedule(rounds: Rounds) -> str:
    """Return when each dataset takes part: ``'edits' from step 1 to 500; 'more' from epoch 2 on``."""
    parts = []
    for name in sorted(rounds.names):
        own = rounds.rules.of(name)
        spans = [
            _span(word, first, last)
            for word, first, last in (
                ("step", own.start_step, own.end_step),
                ("epoch", own.start_epoch, own.end_epoch),
            )
            if (first, last) != (1, None)
        ]
        parts.append(f"{name!r} {' and '.join(spans) or 'always'}")
    return "; ".join(parts)


def _span(word: str, first: int, last: int | None) -> str:
    return f"from {word} {first} on" if last is None else f"from {word} {first} to {last}"


def _check_epochs_show_something(rounds: Rounds) -> None:
    expected: dict[str, float] = defaultdict(float)
    for name, count in SampleTable.of(rounds.samples).counts().items():
        own = rounds.rules.of(name)
        expected[name] += count * (own.repeats + 1) * own.probability
    # a schedule may leave any one of them alone
    visits = min(expected.values(), default=0) if rounds.is_scheduled else sum(expected.values())
    if visits < FEWEST_VISITS:
        raise DataError(
            f"an epoch shows {visits:.2g} of {len(rounds.samples)} samples on average: probability leaves out nearly "
            "all\nhint: raise probability"
        )
