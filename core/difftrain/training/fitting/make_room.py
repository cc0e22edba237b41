"""Lets a step that runs out of memory be taken again with fewer blocks that keep their activations."""

from __future__ import annotations

from functools import partial

from difftrain.model.tuned_blocks import TunedBlocks
from difftrain.steps.training_state import TrainingState
from difftrain.types import Reporter


def let_steps_make_room(state: TrainingState, blocks: TunedBlocks, reporter: Reporter) -> None:
    """Set :attr:`TrainingState.make_room`: memory was measured once, and its gaps or a larger batch may come later.

    Not with several processes: the others would wait in their exchange of gradients for a process that starts its step
    again.
    """
    if state.accelerator.num_processes == 1:
        state.make_room = partial(_keep_less, state, blocks, reporter)
    elif blocks.kept:
        reporter.say(
            "note: a step that runs out of memory ends this run, because it has several processes; with one, it "
            "would be taken again with fewer blocks that keep their activations"
        )


def _keep_less(state: TrainingState, blocks: TunedBlocks, reporter: Reporter) -> bool:
    """Lower the number of blocks that keep their activations by a quarter, if there are any."""
    if blocks.kept == 0:
        return False
    blocks.kept = blocks.kept * 3 // 4
    compiling = "; the others may have to be compiled for that" if blocks.compiled else ""
    reporter.say(
        f"step {state.step + 1} ran out of memory and is taken again: from now on {blocks.kept} of {blocks.count} "
        f"blocks keep their activations{compiling}"
    )
    return True
