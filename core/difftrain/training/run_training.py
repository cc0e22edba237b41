"""One whole run, from its plan to its exit status.

A single-process run imports torch only once the data is known to be right, so that problems with files or pairs are
reported within a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from difftrain.machine.compile_cache import compiled_kept_in
from difftrain.machine.disk import describe_needs
from difftrain.machine.garbage import paused_garbage_collection
from difftrain.machine.interrupts import Interrupted, Interrupts
from difftrain.machine.processes import is_first_process
from difftrain.output.console import make_reporter
from difftrain.planning.run_plan import RunPlan
from difftrain.publishing.hub_account import find_repository, make_repository
from difftrain.startup.prepare_run import PreparedRun, prepare_run
from difftrain.types import Reporter


@dataclass(frozen=True, kw_only=True)
class RerunCommands:
    """Commands that a user may type after a run was stopped."""

    same: str
    """Starts the same run again."""
    resuming: str
    """Resumes the same run from its newest checkpoint."""
    pushing: str
    """Uploads the results of the same run."""


def run_training(plan: RunPlan, again: RerunCommands, *, fast: bool = False) -> int:
    """Prepare, train, save; return the exit status: 0, or 128 plus the number of the signal that ended the run.

    Args:
        again: Commands to show the user when the run is stopped.
        fast: Do not decode images before they are encoded.

    Raises:
        DifftrainError: For anything that the user can fix before the first step.
    """
    interrupts = Interrupts()
    reporter = make_reporter(quiet=not is_first_process(), reader_left=interrupts.reader_left, ask=interrupts.ask)
    try:
        for note in plan.notes:
            reporter.say(f"note: {note}")
        with interrupts, compiled_kept_in(plan.config.cache_dir):
            repository = find_repository(plan.config) if is_first_process() else None
            prepared = prepare_run(plan, reporter, fast=fast)
            if repository:
                make_repository(repository)
            _say_prepared(prepared, reporter)
            with reporter.phase("start torch"), paused_garbage_collection():
                from difftrain.training import session
            stopped_by = session.train_prepared(
                plan, prepared, interrupts, reporter, repository=repository, push_command=again.pushing
            )
    except Interrupted as interrupt:
        # outside of the with: a signal that arrives during a call into C may be raised only on leaving it
        reporter.say(f"stopped by {interrupt}; caches and earlier checkpoints are kept")
        stopped_by = interrupt.number
    except Exception:
        # the caller reports what ended the run; what it saved is not lost
        if interrupts.saved:
            _say_how_to_go_on(again.resuming, reporter)
        raise
    if stopped_by is None:
        return 0
    # until this run has saved something, its newest checkpoint belongs to another run or is not the one asked for
    _say_how_to_go_on(again.resuming if interrupts.saved else again.same, reporter)
    return 128 + stopped_by


def _say_prepared(prepared: PreparedRun, reporter: Reporter) -> None:
    for note in prepared.notes:
        reporter.say(f"note: {note}")
    if summary := describe_needs(prepared.needs):
        reporter.say(summary)
    if held_out := prepared.data.held_out_counts():
        listed = ", ".join(f"{dataset_id} ({count} samples)" for dataset_id, count in held_out.items())
        reporter.say(f"held out from training: {listed}")


def _say_how_to_go_on(command: str, reporter: Reporter) -> None:
    reporter.say("continue with:")
    reporter.say(f"  {command}")
