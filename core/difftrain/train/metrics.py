"""Every step as one line of JSON, for plots and scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from difftrain.plugins.hookspecs import hookimpl
from difftrain.types import StepResult


class MetricsFile:
    """Observer that appends to ``metrics.jsonl``; a line is an object with at least ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def difftrain_run_start(self, first_step: int) -> None:
        """Drop the lines of steps that will be done again, so that each step stands once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= first_step]
        temporary = self.path.with_name(f".{self.path.name}.partial")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(self.path)

    @hookimpl
    def difftrain_step_end(self, result: StepResult) -> None:
        self.write(
            step=result.step,
            loss=result.loss,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            seconds=round(result.seconds, 4),
            samples=result.samples,
            epoch=result.epoch,
            **{name: round(value, 4) for name, value in result.metrics.items()},
        )

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def validations(path: Path, measured: str, identity: str) -> dict[int, dict[str, Any]]:
    """The lines, by step, of those validations that measured this value alike.

    Args:
        path: The metrics file.
        measured: ``fixed_loss`` or ``psnr``.
        identity: What it was measured on, as the lines have it under ``fixed_loss_on`` or ``psnr_on``.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    alike = (line for line in lines if line.get(f"{measured}_on") == identity)
    return {line["step"]: line for line in alike if line.get(measured) is not None}


def _step_of(line: str) -> float:
    """The step of a line; a line cut short by a kill counts as one to drop."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
