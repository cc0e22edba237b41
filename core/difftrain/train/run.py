"""One whole run, from its plan to its exit status.

A run of one process imports torch only once the data is known to be right: what is wrong with files or pairs is said
within a second.
"""

from __future__ import annotations

import os

from difftrain.data.disk import told_needs
from difftrain.train.interrupt import Interrupted, Interrupts
from difftrain.train.plan import RunPlan
from difftrain.train.report import make_reporter
from difftrain.train.startup import prepare_run
from difftrain.types import Reporter


def run_training(plan: RunPlan, *, fast: bool = False) -> int:
    """Prepare, train, save; gives the exit status: 0, or 128 and the number of the signal that ended the run.

    Args:
        fast: Do not decode pictures before they are encoded.

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
            ready = prepare_run(plan, reporter, fast=fast)
            for note in ready.notes:
                reporter.say(f"note: {note}")
            if told := told_needs(ready.needs):
                reporter.say(told)
            if held_out := ready.prepared.held_out_counts():
                listed = ", ".join(f"{dataset_id} ({count} samples)" for dataset_id, count in held_out.items())
                reporter.say(f"held out of training: {listed}")
            with reporter.phase("start torch"):
                from difftrain.train import session
            status = session.train_prepared(plan, ready, interrupts, reporter)
    except Interrupted as interrupt:
        # outside of the with: a signal that came during a call into C is raised as late as on leaving it
        reporter.say(f"stopped by {interrupt}; caches and earlier checkpoints are kept")
        status = "interrupted"
    except Exception:
        # what ended the run is told by the caller; what it saved is not lost
        if interrupts.saved:
            _say_how_to_go_on(plan, interrupts, reporter)
        raise
    if status != "interrupted":
        return 0
    _say_how_to_go_on(plan, interrupts, reporter)
    return interrupts.exit_status


def _say_how_to_go_on(plan: RunPlan, interrupts: Interrupts, reporter: Reporter) -> None:
    """Until this run has saved something, its newest checkpoint is another run's, or not what the user asked for."""
    reporter.say("go on with:")
    reporter.say(f"  {plan.resume_command if interrupts.saved else plan.same_command}")
