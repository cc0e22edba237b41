"""The contract of objects that watch a run: trackers, metrics files, progress bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from difftrain.config.options import Options
from difftrain.config.run_options import RunConfig
from difftrain.types import StepResult


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStart:
    """A run that is about to train."""

    config: RunConfig
    output_dir: Path
    """Exists already."""
    total_steps: int
    first_step: int
    """Steps already done: 0, or the step of the resumed checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationResult:
    """What one validation measured and drew; if a signal or an error ended it, what it had done until then."""

    step: int
    metrics: Mapping[str, float]
    """``fixed_loss``, the loss of the same samples at the same noise; ``psnr`` and ``psnr_reference`` in dB."""
    by_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """For each metric that is a mean over images, every image's value by the image's name."""
    measured_on: Mapping[str, str] = field(default_factory=dict)
    """By metric, a text that differs where values are not comparable: other samples, settings or base model."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Images by name, as PNG; ``sheet`` shows all of them."""


class Observer(Options):
    """Watches a run but must not change it. Every registered observer watches every run; fields are run options.

    The object is built when the run is planned, so that `difftrain check` finds wrong options. Its methods are called
    only in the main process. If one raises, a warning names it, once per kind of error, and the run continues.
    Keep state between calls in private attributes (``_file: Path = PrivateAttr()``).
    """

    name: ClassVar[str]

    def run_start(self, run: RunStart) -> None:
        """Training is about to start: the model is loaded, the checkpoint resumed."""

    def step_end(self, result: StepResult) -> None:
        """One optimizer step is done."""

    def checkpoint_saved(self, step: int, path: Path) -> None:
        """A checkpoint is complete on disk."""

    def validation_end(self, result: ValidationResult) -> None:
        """A validation has ended. The one of step 0 comes before the first step."""

    def run_end(self, step: int, status: str) -> None:
        """The run has ended: ``finished``, ``interrupted`` or ``failed``."""
