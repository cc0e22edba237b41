"""The training loop, meant to be read like prose."""

from __future__ import annotations

from collections.abc import Iterator

from difftrain.checkpoints.saver import Saver
from difftrain.data.streaming.stream import MicroBatch
from difftrain.machine.interrupts import Interrupted, Interrupts
from difftrain.machine.processes import greatest
from difftrain.output.observers import Observers
from difftrain.steps.step import take_step
from difftrain.steps.training_state import TrainingState
from difftrain.validation.validator import Validations


def train(
    state: TrainingState,
    micro_batches: Iterator[MicroBatch],
    saver: Saver,
    validations: Validations,
    observers: Observers,
    interrupts: Interrupts,
) -> int | None:
    """Train to the last step or to a signal; however it ends, what was trained is saved.

    Returns:
        The number of the signal; None if the run has completed all of its steps.

    Raises:
        NotFinite: If a loss, a gradient or the trained weights are NaN or infinite.
    """
    config = state.plan.config
    stopped_by = None
    state.denoiser.train()
    try:
        while state.step < state.total_steps and not (stopped_by := _signal_anywhere(state, interrupts)):
            result = take_step(state, micro_batches)
            saver.check_can_save()
            observers.step_end(result)

            is_last = state.step == state.total_steps
            if is_last or _due(state.step, config.checkpoint_step_interval):
                saver.save()
            if config.validation_steps and (is_last or _due(state.step, config.validation_steps)):
                validations.validate()
        saver.save()
    except Interrupted:
        raise  # a second signal: at once
    except BaseException as error:
        saver.rescue(error)
        raise
    return stopped_by


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _signal_anywhere(state: TrainingState, interrupts: Interrupts) -> int | None:
    """Return the signal that reached any process, so that all of them leave the loop at the same step."""
    return greatest(state.accelerator, interrupts.number or 0) or None
