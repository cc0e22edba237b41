"""When a run saves and which checkpoints it keeps: no broken weights, and never less than one that works."""

from __future__ import annotations

from pathlib import Path

import torch

from difftrain.checkpoints.checkpoint_files import (
    check_finite,
    export_adapter,
    rehearse,
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
from difftrain.steps.training_state import Trainee
from difftrain.types import Reporter

_PROOF_SIGMA = 0.5


class Saver:
    """Saves in the main process what all have put together; the others wait, so that none trains on meanwhile.

    Every method is called in every process.
    """

    def __init__(self, run: Trainee, observers: Observers, interrupts: Interrupts, reporter: Reporter) -> None:
        self._run = run
        self._observers = observers
        self._interrupts = interrupts
        self._reporter = reporter
        self._folder: Path = run.plan.config.output_dir
        self._saved_at = run.step
        self._rehearsed = False
        self._failed = False
        """Whether a save has failed, so that it is not tried again on the way out."""

    def rehearse(self) -> None:
        """After the first update, once: find out what could not be saved."""
        if self._rehearsed or self._run.proven_with is None:
            return
        self._failed = True
        rehearse(self._run, self._folder)
        self._failed = False
        self._rehearsed = True

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is there, and take away the oldest beyond the limit.

        Raises:
            NotFinite: If the weights do not work; nothing is written or taken away.
        """
        if self._saved_at == self._run.step:
            return
        if self._broken(together=True):
            self._failed = True
            raise self._ruined()
        self._write()
        self._rotate()
        self._run.accelerator.wait_for_everyone()

    def rescue(self, error: BaseException) -> None:
        """The run ends by an error: keep what was trained, if it is whole and works.

        Waits for no other process, since the error may be of this one alone. Where each has only a part, nothing can
        be saved then; but what is not finite is so in all of them, at once.
        """
        run = self._run
        together = holds_parts(run) and isinstance(error, NotFinite)
        if self._failed or self._saved_at == run.step or not (together or run.accelerator.is_main_process):
            return
        if holds_parts(run) and not together:
            self._reporter.say(f"step {run.step} is not saved: each process has only a part of its weights")
            return
        if run.updating:
            self._reporter.say(f"step {run.step + 1} ended while its weights were written; they are not saved")
            return
        try:
            if isinstance(error, NotFinite) and self._broken(together):
                raise self._ruined()
            self._write()
            self._reporter.say(f"saved {self._folder / f'checkpoint-{run.step}'}")
        except DifftrainError as problem:
            self._reporter.say(f"step {run.step} is not saved: {problem}")

    def export(self) -> None:
        """Write the adapter of the finished run."""
        export_adapter(self._run, self._folder)

    def _write(self) -> None:
        run = self._run
        self._failed = True
        gathered = gather_state(run)
        path = None if gathered is None else self._write_or_keep_adapter(gathered)
        self._failed = False
        self._saved_at, self._interrupts.saved = run.step, True
        if path is not None:
            self._observers.checkpoint_saved(run.step, path)

    def _write_or_keep_adapter(self, gathered: GatheredState) -> Path:
        """The checkpoint; where only the optimizer's state cannot be stored, what was trained is kept all the same."""
        try:
            return write_checkpoint(self._run, gathered, self._folder)
        except CheckpointError:
            kept = write_adapter(
                self._run, gathered.exported, self._folder, self._folder / f"adapter-of-step-{self._run.step}"
            )
            self._reporter.say(f"the adapter of step {self._run.step} is kept as {kept}")
            raise

    def _rotate(self) -> None:
        if not self._run.accelerator.is_main_process:
            return
        try:
            rotate(self._folder, self._run.plan.config.checkpoints_total_limit)
        except OSError as error:
            self._reporter.say(f"note: an old checkpoint cannot be removed ({error.strerror}: {error.filename})")

    def _broken(self, together: bool) -> bool:
        """Whether the weights do not work: in any process, or in this one if the others are not asked."""
        own = 0 if self._weights_work() else 1
        return bool(greatest(self._run.accelerator, own) if together else own)

    def _weights_work(self) -> bool:
        """Whether a batch that gave a finite loss still does: an update may have ruined the weights meanwhile."""
        micro = self._run.proven_with
        if micro is None:
            return True
        latents = micro.batch.latents
        sigma = torch.full((len(latents),), _PROOF_SIGMA)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        with self._run.evaluating(), torch.no_grad():
            return bool(loss_at(self._run, self._run.bare_denoiser, micro.batch, sigma, noise).isfinite().all())

    def _ruined(self) -> NotFinite:
        check_finite(not_finite_weights(self._run), self._run.step)
        return NotFinite(
            f"the weights after step {self._run.step} give no finite loss any more; they are not saved\n"
            f"hint: lower learning_rate, {self._run.plan.config.learning_rate:g} now"
        )
