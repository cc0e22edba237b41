"""One whole run, from its plan to its exit status.

A run of one process imports torch only once the data is known to be right: what is wrong with files or pairs is said
within a second.
"""

from __future__ import annotations

import os

from difftrain.data.folders import check_writable
from difftrain.data.prepare import prepare_samples
from difftrain.train.find_model import find_model
from difftrain.train.interrupt import Interrupted, Interrupts
from difftrain.train.output_dir import find_checkpoint
from difftrain.train.plan import RunPlan
from difftrain.train.processes import first_process_first
from difftrain.train.report import make_reporter


def run_training(plan: RunPlan) -> int:
    """Prepare, train, save; gives the exit status: 0, or 130 / 143 after SIGINT / SIGTERM.

    Raises:
        DifftrainError: Whatever a user can mend, before the first step.
    """
    reporter = make_reporter(quiet=os.environ.get("RANK", "0") != "0")
    for note in plan.notes:
        reporter.say(f"note: {note}")
    interrupts = Interrupts()
    try:
        with interrupts:
            check_writable(plan.config.output_dir, "output_dir")
            find_checkpoint(plan.config.output_dir, plan.config.resume_from_checkpoint)
            found = find_model(plan)
            for note in found.recognised.notes:
                reporter.say(f"note: {note}")
            with first_process_first():
                prepared = prepare_samples(plan.data, reporter=reporter)
            for note in prepared.notes:
                reporter.say(f"note: {note}")
            if held_out := prepared.held_out_counts():
                listed = ", ".join(f"{dataset_id} ({count} samples)" for dataset_id, count in held_out.items())
                reporter.say(f"held out of training: {listed}")
            with reporter.phase("start torch"):
                from difftrain.train import session
            status = session.train_prepared(plan, prepared, found.location, interrupts, reporter)
    except Interrupted as interrupt:
        # outside of the with: a signal that came during a call into C is raised as late as on leaving it
        reporter.say(f"stopped by {interrupt}; caches and earlier checkpoints are kept")
        status = "interrupted"
    if status != "interrupted":
        return 0
    # until this run has saved something, its newest checkpoint is another run's, or not what the user asked for
    reporter.say("go on with:")
    reporter.say(f"  {plan.resume_command if interrupts.saved else plan.same_command}")
    return interrupts.exit_status
