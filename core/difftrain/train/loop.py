"""The training loop, to be read as prose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from difftrain.data.loader import BatchStream
from difftrain.train.interrupt import Interrupts
from difftrain.train.processes import greatest
from difftrain.train.step import Trainee, take_step


@dataclass(frozen=True, kw_only=True)
class Duties:
    """What is done beside the steps, and how often; 0 is never."""

    checkpoint_every: int
    validate_every: int
    save: Callable[[Trainee], Path]
    validate: Callable[[Trainee], None]


def train(run: Trainee, stream: BatchStream, duties: Duties, interrupts: Interrupts) -> str:
    """Train to the last step or to an interrupt; either way the last thing done is a checkpoint.

    Returns:
        ``finished`` or ``interrupted``.
    """
    observers = run.plan.plugins.hook
    batches = iter(stream)
    saved_at = run.step
    run.denoiser.train()

    while run.step < run.total_steps and not _interrupted(run, interrupts):
        result = take_step(run, batches)
        observers.difftrain_step_end(result=result)

        is_last = run.step == run.total_steps
        if is_last or _due(run.step, duties.checkpoint_every):
            duties.save(run)
            saved_at = run.step
        if duties.validate_every and (is_last or _due(run.step, duties.validate_every)):
            duties.validate(run)

    if saved_at != run.step:
        duties.save(run)
    return "finished" if run.step >= run.total_steps else "interrupted"


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _interrupted(run: Trainee, interrupts: Interrupts) -> bool:
    """All processes must leave the loop at the same step, whichever of them the signal reached."""
    interrupts.elsewhere = greatest(run.accelerator, interrupts.number or 0) or None
    return interrupts.elsewhere is not None
