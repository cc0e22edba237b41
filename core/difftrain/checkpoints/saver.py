"""When a run saves and which checkpoints it keeps: no broken weights, and always at least one that works."""

from __future__ import annotations

from pathlib import Path

import torch

from difftrain.checkpoints.checkpoint_files import (
    check_can_save,
    check_finite,
    export_adapter,
    rotate,
    write_adapter,
    write_checkpoint,
)
from difftrain.checkpoints.gather import GatheredState, gather_state, holds_parts, not_finite_weights
from difftrain.errors import CheckpointError, DifftrainError, NotFinite
from difftrain.machine.interrupts import Interrupts
from difftrain.machine.processes import greatest
from difftrain.output.observers import Observers
from difftrain.steps.step import loss_at
from difftrain.steps.training_state import TrainingState
from difftrain.types import Reporter

_PROOF_SIGMA = 0.5


class Saver:
    """Saves in the main process what all processes have collected; the others wait, so none trains on meanwhile.

    Call every method in every process.
    """

    def __init__(self, state: TrainingState, observers: Observers, interrupts: Interrupts, reporter: Reporter) -> None:
        self._state = state
        self._observers = observers
        self._interrupts = interrupts
        self._reporter = reporter
        self._folder: Path = state.plan.config.output_dir
        self._saved_at = state.step
        self._checked = False
        self._failed = False
        """True once a save has failed, so that it is not tried again on the way out."""

    def check_can_save(self) -> None:
        """Check once, after the first update, that the state can be saved."""
        if self._checked or self._state.last_good_batch is None:
            return
        self._failed = True
        check_can_save(self._state, self._folder)
        self._failed = False
        self._checked = True

    def save(self) -> None:
        """Write a checkpoint of this step unless it exists, and delete the oldest beyond the limit.

        Raises:
            NotFinite: If the weights are broken; nothing is written or deleted.
        """
        if self._saved_at == self._state.step:
            return
        if self._broken(together=True):
            self._failed = True
            raise self._ruined()
        self._write()
        self._rotate()
        self._state.accelerator.wait_for_everyone()

    def rescue(self, error: BaseException) -> None:
        """Keep what was trained when an error ends the run, if the weights are whole and work.

        Waits for no other process, since the error may be in this one alone. Where each process holds only a part,
        nothing can be saved; an error of not finite numbers, though, happens in all of them at once.
        """
        state = self._state
        together = holds_parts(state) and isinstance(error, NotFinite)
        if self._failed or self._saved_at == state.step or not (together or state.accelerator.is_main_process):
            return
        if holds_parts(state) and not together:
            self._reporter.say(f"step {state.step} is not saved: each process has only a part of the weights")
            return
        if state.updating:
            self._reporter.say(f"step {state.step + 1} stopped while it updated the weights; they are not saved")
            return
        try:
            if isinstance(error, NotFinite) and self._broken(together):
                raise self._ruined()
            self._write()
            self._reporter.say(f"saved {self._folder / f'checkpoint-{state.step}'}")
        except DifftrainError as problem:
            self._reporter.say(f"step {state.step} is not saved: {problem}")

    def export(self) -> None:
        """Write the adapter of the finished run."""
        export_adapter(self._state, self._folder)

    def _write(self) -> None:
        state = self._state
        self._failed = True
        gathered = gather_state(state)
        path = None if gathered is None else self._write_or_keep_adapter(gathered)
        self._failed = False
        self._saved_at, self._interrupts.saved = state.step, True
        if path is not None:
            self._observers.checkpoint_saved(state.step, path)

    def _write_or_keep_adapter(self, gathered: GatheredState) -> Path:
        """Write the checkpoint; if only the optimizer's state cannot be stored, keep at least the adapter."""
        try:
            return write_checkpoint(self._state, gathered, self._folder)
        except CheckpointError:
            kept = write_adapter(
                self._state, gathered.exported, self._folder, self._folder / f"adapter-of-step-{self._state.step}"
            )
            self._reporter.say(f"the adapter of step {self._state.step} is saved as {kept}")
            raise

    def _rotate(self) -> None:
        if not self._state.accelerator.is_main_process:
            return
        try:
            rotate(self._folder, self._state.plan.config.checkpoints_total_limit)
        except OSError as error:
            self._reporter.say(f"note: cannot remove an old checkpoint ({error.strerror}: {error.filename})")

    def _broken(self, together: bool) -> bool:
        """Return whether the weights are broken: in any process, or in this one if ``together`` is false."""
        own = 0 if self._weights_work() else 1
        return bool(greatest(self._state.accelerator, own) if together else own)

    def _weights_work(self) -> bool:
        """Return whether a batch that gave a finite loss still does: an update may have ruined the weights since."""
        micro = self._state.last_good_batch
        if micro is None:
            return True
        latents = micro.batch.latents
        sigma = torch.full((len(latents),), _PROOF_SIGMA)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        with self._state.evaluating(), self._state.uncompiled(), torch.no_grad():
            return bool(loss_at(self._state, self._state.bare_denoiser, micro.batch, sigma, noise).isfinite().all())

    def _ruined(self) -> NotFinite:
        check_finite(not_finite_weights(self._state), self._state.step)
        return NotFinite(
            f"the weights after step {self._state.step} no longer give a finite loss; they are not saved\n"
            f"hint: lower learning_rate, now {self._state.plan.config.learning_rate:g}"
        )
