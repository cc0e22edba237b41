"""One whole run, from its plan to its exit status.

A run of one process imports torch only once the data is known to be right: what is wrong with files or pairs is said
within a second.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from difftrain.machine.disk import describe_needs
from difftrain.machine.interrupts import Interrupted, Interrupts
from difftrain.output.console import make_reporter
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.prepare_run import PreparedRun, prepare_run
from difftrain.types import Reporter


@dataclass(frozen=True, kw_only=True)
class RerunCommands:
    """Commands that a user may type after a run was stopped."""

    same: str
    """The same run again."""
    resuming: str
    """The same run, from its newest checkpoint on."""


def run_training(plan: RunPlan, again: RerunCommands, *, fast: bool = False) -> int:
    """Prepare, train, save; gives the exit status: 0, or 128 and the number of the signal that ended the run.

    Args:
        again: What to tell the user to type when the run is stopped.
        fast: Do not decode images before they are encoded.

    Raises:
        DifftrainError: Whatever a user can mend, before the first step.
    """
    interrupts = Interrupts()
    reporter = make_reporter(
        quiet=os.environ.get("RANK", "0") != "0", reader_left=interrupts.reader_left, ask=interrupts.ask
    )
    try:
        for note in plan.notes:
            reporter.say(f"note: {note}")
        with interrupts:
            prepared = prepare_run(plan, reporter, fast=fast)
            _say_prepared(prepared, reporter)
            with reporter.phase("start torch"):
                from difftrain.training import session
            stopped_by = session.train_prepared(plan, prepared, interrupts, reporter)
    except Interrupted as interrupt:
        # outside of the with: a signal that came during a call into C is raised as late as on leaving it
        reporter.say(f"stopped by {interrupt}; caches and earlier checkpoints are kept")
        stopped_by = interrupt.number
    except Exception:
        # what ended the run is told by the caller; what it saved is not lost
        if interrupts.saved:
            _say_how_to_go_on(again.resuming, reporter)
        raise
    if stopped_by is None:
        return 0
    # until this run has saved something, its newest checkpoint is another run's, or not what the user asked for
    _say_how_to_go_on(again.resuming if interrupts.saved else again.same, reporter)
    return 128 + stopped_by


def _say_prepared(prepared: PreparedRun, reporter: Reporter) -> None:
    for note in prepared.notes:
        reporter.say(f"note: {note}")
    if summary := describe_needs(prepared.needs):
        reporter.say(summary)
    if held_out := prepared.data.held_out_counts():
        listed = ", ".join(f"{dataset_id} ({count} samples)" for dataset_id, count in held_out.items())
        reporter.say(f"held out of training: {listed}")


def _say_how_to_go_on(command: str, reporter: Reporter) -> None:
    reporter.say("go on with:")
    reporter.say(f"  {command}")
