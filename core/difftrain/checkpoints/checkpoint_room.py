"""Checks before the first step that the disk has room for a run's checkpoints."""

from __future__ import annotations

import shutil

from difftrain.machine.disk import Need, check_room, describe_bytes
from difftrain.steps.training_state import TrainingState
from difftrain.types import Reporter

_TIMES_THE_WEIGHTS = 5
"""Size of a checkpoint in multiples of the trained weights: the weights twice, and up to three values per weight for
the optimizer (AdamW in bfloat16: two means and a compensation)."""


def check_checkpoint_room(state: TrainingState, reporter: Reporter) -> None:
    """Compare the space that checkpoints need with the free space; too little for all of them is only a note.

    Raises:
        MachineError: If there is no room for even one.
    """
    config = state.plan.config
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state.trained)
    each = _TIMES_THE_WEIGHTS * weights
    result = "the model at the end" if state.plan.adapter.trains_base else "the adapter at the end"
    check_room([
        Need(folder=config.output_dir, what="a checkpoint", files=1, bytes=each, option="output_dir"),
        Need(folder=config.output_dir, what=result, files=1, bytes=weights, option="output_dir"),
    ])  # fmt: skip
    ahead = checkpoints_ahead(state)
    # a new one is written before the oldest is deleted
    kept = ahead if config.checkpoints_total_limit is None else min(ahead, config.checkpoints_total_limit + 1)
    free = shutil.disk_usage(config.output_dir).free
    if kept * each + weights > free:
        reporter.say(
            f"note: the run will keep {kept} checkpoints of about {describe_bytes(each)}, and {describe_bytes(free)} "
            f"are free in {config.output_dir}; set checkpoints_total_limit or a larger checkpoint_step_interval"
        )


def checkpoints_ahead(state: TrainingState) -> int:
    """Number of checkpoints the run has yet to write, the last one included."""
    interval = state.plan.config.checkpoint_step_interval
    if interval == 0:
        return 1
    ends_on_one = state.total_steps % interval == 0
    return state.total_steps // interval - state.step // interval + (0 if ends_on_one else 1)
