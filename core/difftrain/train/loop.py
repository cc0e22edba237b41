"""The training loop, to be read as prose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from difftrain.data.stream import MicroBatch
from difftrain.train.interrupt import Interrupted, Interrupts
from difftrain.train.observers import Observers
from difftrain.train.processes import greatest
from difftrain.train.saver import Saver
from difftrain.train.step import Trainee, take_step


def train(
    run: Trainee,
    micro_batches: Iterator[MicroBatch],
    saver: Saver,
    validate: Callable[[], None],
    observers: Observers,
    interrupts: Interrupts,
) -> str:
    """Train to the last step or to an interrupt; whatever ends it, what was trained is saved.

    Returns:
        ``finished`` or ``interrupted``.

    Raises:
        NotFinite: If a loss, a gradient or the trained weights are NaN or infinite.
    """
    config = run.plan.config
    run.denoiser.train()
    try:
        while run.step < run.total_steps and not _interrupted(run, interrupts):
            result = take_step(run, micro_batches)
            saver.rehearse()
            observers.step_end(result)

            is_last = run.step == run.total_steps
            if is_last or _due(run.step, config.checkpoint_step_interval):
                saver.save()
            if config.validation_steps and (is_last or _due(run.step, config.validation_steps)):
                validate()
        saver.save()
    except Interrupted:
        raise  # a second signal: at once
    except BaseException as error:
        saver.rescue(error)
        raise
    return "finished" if run.step >= run.total_steps else "interrupted"


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _interrupted(run: Trainee, interrupts: Interrupts) -> bool:
    """All processes must leave the loop at the same step, whichever of them the signal reached."""
    interrupts.elsewhere = greatest(run.accelerator, interrupts.number or 0) or None
    return interrupts.elsewhere is not None
