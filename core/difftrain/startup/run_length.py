"""The length of a run and what it shows, from its config. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from difftrain.data.streaming.epoch import EpochRules
from difftrain.data.streaming.rounds import Position, Rounds
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
        repeats={dataset.id: dataset.config.repeats for dataset in plan.data.target_sets},
        probability={dataset.id: dataset.config.probability for dataset in plan.data.target_sets},
        caption_dropout=config.caption_dropout_probability,
        reference_dropout=config.reference_dropout_probability,
        batch_key=plan.family.batch_key,
    )


def rounds_of(plan: RunPlan, samples: Sequence[Sample], *, start: Position | None = None, processes: int = 1) -> Rounds:
    """Return the rounds of a run from a position on, from the config."""
    return Rounds(
        samples=samples,
        rules=epoch_rules(plan),
        start=start or Position(),
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


def _check_epochs_show_something(rounds: Rounds) -> None:
    rules = rounds.rules
    visits = sum(
        (rules.repeats.get(sample.dataset_id, 0) + 1) * rules.probability.get(sample.dataset_id, 1.0)
        for sample in rounds.samples
    )
    if visits < FEWEST_VISITS:
        raise DataError(
            f"an epoch shows {visits:.2g} of {len(rounds.samples)} samples on average: probability leaves out nearly "
            "all\nhint: raise probability"
        )
