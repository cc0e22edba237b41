"""The plugin of ``tools/endurance.py``: records what every step trained, and causes the accidents.

Not an example: it reaches into the core to see more than observers do.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch

from difftrain import Batch, Loss, NoisyBatch, Observer, RunStart, StepResult, hookimpl
from difftrain.steps.tally import Tally
from difftrain.validation import validator

ACCIDENTS = dict((*part.split(), "0")[:2] for part in os.environ.get("ENDURANCE", "").split(",") if part)
"""Accidents by step: ``hangup 1000,nan 3000``; ``full`` at every validation."""
trained: list[tuple[int, str]] = []
"""(epoch, sample) pairs of the current step."""
original_add = Tally.add


def add(self: Tally, micro: Any, losses: torch.Tensor, tokens: Any) -> None:
    if micro.weight:
        trained.extend((micro.position.epoch, key) for key in micro.batch.keys)
    original_add(self, micro, losses, tokens)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


Tally.add = add  # type: ignore[method-assign]
if "full" in ACCIDENTS:
    validator.save_drawn = full_disk


class Endurance(Loss):
    """Mean squared error; NaN in one step."""

    name: ClassVar[str] = "endurance"
    step: ClassVar[int] = 0

    def compute(self, prediction: torch.Tensor, noisy: NoisyBatch, batch: Batch) -> torch.Tensor:
        loss = (prediction.float() - noisy.target).square().flatten(1).mean(1)
        is_step = torch.is_grad_enabled()  # the loss also runs to test weights and in validations
        return loss * float("nan") if is_step and self.step + 1 == int(ACCIDENTS.get("nan", 0)) else loss


@hookimpl
def difftrain_losses() -> Iterable[type[Loss]]:
    return (Endurance,)


class Accidents(Observer):
    """Records the samples of each step; hangs up after one."""

    name: ClassVar[str] = "accidents"

    def run_start(self, run: RunStart) -> None:
        Endurance.step = run.first_step

    def step_end(self, result: StepResult) -> None:
        Endurance.step = result.step
        with Path("trained.jsonl").open("a") as file:
            file.write(json.dumps({"step": result.step, "samples": trained}) + "\n")
        trained.clear()
        if result.step == int(ACCIDENTS.get("hangup", 0)):
            os.kill(os.getpid(), signal.SIGHUP)


@hookimpl
def difftrain_observers() -> Iterable[type[Observer]]:
    return (Accidents,)
