"""Checks which target sets are trained on when: no step may be without one, as far as the config tells. No IO."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig


def check_training(
    config: RunConfig, images: Sequence[DatasetConfig], held_out: Collection[str], problems: Problems
) -> None:
    """Report steps that no set takes part in, sets that never take part, and runs that only regularise.

    Args:
        images: Enabled target sets and the reference sets that they name.
        held_out: Ids of the sets that are not trained on.
    """
    trained = [entry for entry in images if not entry.is_reference and entry.id not in held_out]
    if not trained:
        return
    if all(entry.is_regularisation_data for entry in trained):
        problems.add(
            f"{config.data_backend_config}: every set to train on has is_regularisation_data = true, so nothing would "
            f"be learnt: {', '.join(entry.id for entry in trained)}\n"
            "hint: remove it from the sets that show what is to be learnt"
        )
    _check_first_step(trained, problems)
    _check_gaps(config, trained, problems)
    waited_for = [entry for entry in trained if not entry.ignore_epochs]
    for entry in trained:
        if entry.ignore_epochs and config.data_backend_sampling != "uniform":
            problems.note(f'dataset {entry.id!r}: ignore_epochs: no effect, data_backend_sampling is not "uniform"')
        elif entry.ignore_epochs and not waited_for:
            problems.note(f"dataset {entry.id!r}: ignore_epochs: no effect, there is no set that epochs wait for")
        for first, last in (("start_step", "max_train_steps"), ("start_epoch", "num_train_epochs")):
            start, end = getattr(entry, first), getattr(config, last)
            if end is not None and start > end:
                problems.note(f"dataset {entry.id!r}: not used, {first} is {start} and {last} is {end}")


def _check_first_step(trained: Sequence[DatasetConfig], problems: Problems) -> None:
    if not any(entry.start_step == entry.start_epoch == 1 for entry in trained):
        starts = "; ".join(f"{entry.id!r} at step {entry.start_step}, epoch {entry.start_epoch}" for entry in trained)
        nearest = min(trained, key=lambda entry: (entry.start_epoch, entry.start_step))
        problems.add(
            f"no set takes part in the first step; they start: {starts}\n"
            f"hint: let {nearest.id!r} start at once: remove its start_step and start_epoch"
        )


def _check_gaps(config: RunConfig, trained: Sequence[DatasetConfig], problems: Problems) -> None:
    """Report steps between or after the sets; where epochs matter too, only the data tell."""
    covered = 0
    for entry in sorted(trained, key=lambda entry: entry.start_step):
        if entry.start_step > covered + 1:
            break
        if entry.end_step is None:
            return
        covered = max(covered, entry.end_step)
    if covered == 0 or (config.max_train_steps is not None and config.max_train_steps <= covered):
        return
    last = max((entry for entry in trained if entry.end_step is not None), key=lambda one: one.end_step == covered)
    total = f", but max_train_steps is {config.max_train_steps}" if config.max_train_steps else ""
    problems.add(
        f"no set takes part in step {covered + 1}{total}: dataset {last.id!r} ends with end_step {covered}\n"
        f"hint: raise or remove that end_step, or let another set start with start_step {covered + 1}"
    )
