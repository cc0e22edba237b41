"""Contract of what watches a run: trackers, files of metrics, progress bars."""

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
    """Exists."""
    total_steps: int
    first_step: int
    """Steps that are done already: 0, or the step of the checkpoint that is resumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationResult:
    """What one validation measured and drew; where a signal or an error ended it, what there was by then."""

    step: int
    metrics: Mapping[str, float]
    """``fixed_loss``, the loss of the same samples at the same noise; ``psnr`` and ``psnr_reference`` in dB."""
    by_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of a metric that is a mean over images, each image's value by the image's name."""
    measured_on: Mapping[str, str] = field(default_factory=dict)
    """By metric, a text that differs where values do not compare: other samples, settings or base model."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Images by name, PNG; ``sheet`` shows all of them."""


class Observer(Options):
    """Watches a run, and may not change it. Every registered observer watches every run; fields are run options.

    The object is built when the run is planned, so that `difftrain check` finds wrong options. Its methods are called
    in the main process only. One that raises is named in a warning, once for each kind of error, and the run goes on.
    What an observer keeps between calls belongs in private attributes (``_file: Path = PrivateAttr()``).
    """

    name: ClassVar[str]

    def run_start(self, run: RunStart) -> None:
        """Training is about to begin: the model is loaded, the checkpoint resumed."""

    def step_end(self, result: StepResult) -> None:
        """One optimizer step is done."""

    def checkpoint_saved(self, step: int, path: Path) -> None:
        """A checkpoint is complete on disk."""

    def validation_end(self, result: ValidationResult) -> None:
        """A validation is over. That of step 0 comes before the first step."""

    def run_end(self, step: int, status: str) -> None:
        """The run is over: ``finished``, ``interrupted`` or ``failed``."""
