"""Writes every step and every validation as one line of JSON, for plots and scripts."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PrivateAttr

from difftrain.contracts import Observer, RunStart, ValidationResult
from difftrain.errors import MachineError
from difftrain.machine.retries import refusal
from difftrain.output.output_dir import METRICS_FILE
from difftrain.types import StepResult


class MetricsFile(Observer):
    """Appends to ``metrics.jsonl`` in the output folder; a line is an object with at least ``step``."""

    name: ClassVar[str] = "metrics"
    _path: Path = PrivateAttr()

    def run_start(self, run: RunStart) -> None:
        """Drop the lines of steps that will be done again, so that each step appears once."""
        self._path = run.output_dir / METRICS_FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= run.first_step]
        temporary = self._path.with_name(f".{self._path.name}.partial")
        try:
            temporary.write_text("".join(f"{line}\n" for line in kept))
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise MachineError(refusal(f"{self._path} cannot be written", error)) from error

    def step_end(self, result: StepResult) -> None:
        self._write(
            step=result.step,
            loss=result.loss,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            seconds=round(result.seconds, 4),
            samples=result.samples,
            epoch=result.epoch,
            **({"skipped": True} if result.skipped else {}),
            **{name: round(value, 4) for name, value in result.metrics.items()},
        )

    def validation_end(self, result: ValidationResult) -> None:
        self._write(
            step=result.step,
            **result.metrics,
            **{f"{name}_by_image": dict(values) for name, values in result.by_image.items()},
            **{f"{name}_on": identity for name, identity in result.measured_on.items()},
        )

    def _write(self, **values: Any) -> None:
        """Append one line, complete or not at all; numbers that are not finite become null, because JSON has none.

        Raises:
            MachineError: If it cannot be written.
        """
        line = json.dumps({name: _finite(value) for name, value in values.items()}, allow_nan=False) + "\n"
        length = None
        try:
            with self._path.open("ab") as file:
                length = file.tell()
                file.write(line.encode())
        except OSError as error:
            if length is not None:
                with suppress(OSError):
                    os.truncate(self._path, length)
            raise MachineError(refusal(f"{self._path} cannot be written", error)) from error


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measured_alike(path: Path, measured: str, identity: str) -> dict[int, dict[str, Any]]:
    """Return the lines, by step, of the validations that measured this value on the same things.

    Args:
        path: The metrics file.
        measured: ``fixed_loss`` or ``psnr``.
        identity: What it was measured on, as the lines have it under ``fixed_loss_on`` or ``psnr_on``.
    """
    alike = [line for line in read_metrics(path) if line.get(f"{measured}_on") == identity]
    return {line["step"]: line for line in alike if line.get(measured) is not None}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return every complete line; none if the file is missing or cannot be read."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in map(_parsed, texts) if line is not None]


def _step_of(line: str) -> float:
    """Return the step of a line; a line cut short by a kill counts as one to drop."""
    parsed = _parsed(line)
    return float("inf") if parsed is None else parsed["step"]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
