"""``difftrain``: train."""

from __future__ import annotations

import sys

from difftrain.cli.demo_flag import closing, edit_words, opening
from difftrain.cli.invocation import Invocation
from difftrain.cli.rerun_commands import push_command, resume_command, same_command
from difftrain.output.output_dir import newest_sheet


def train(invocation: Invocation) -> int:
    """Plan, then train, and return the exit status.

    Raises:
        DifftrainError: For anything that the user can fix.
    """
    plan = invocation.plan()
    if invocation.demo:
        model = plan.config.pretrained_model_name_or_path or plan.flavour.hub_id
        print(opening(f"{model} ({plan.family.name} {plan.flavour.name})", invocation.flags), file=sys.stderr)
    # torch only now: every mistake in the config has been found by here, fast
    from difftrain.training.run_training import RerunCommands, run_training

    typed = [argument for argument in invocation.arguments if argument != "train"]
    again = RerunCommands(same=same_command(typed), resuming=resume_command(typed), pushing=push_command(typed))
    status = run_training(plan, again, fast=invocation.fast)
    if invocation.demo and status == 0:
        chosen = f"--model {plan.family.name} --flavour {plan.flavour.name}"
        output = plan.config.output_dir
        print(closing(chosen, newest_sheet(output), same_command(edit_words(output))), file=sys.stderr)
    return status
