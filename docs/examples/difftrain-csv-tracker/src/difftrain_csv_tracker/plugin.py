"""The whole plugin: an observer, and the hook that lists it. A tracker for another service looks the same."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from difftrain import Observer, StepResult, ValidationResult, hookimpl


class CsvTracker(Observer):
    """Append the numbers of a run to a CSV file, one per line."""

    name: ClassVar[str] = "csv"

    csv_tracker_file: Path | None = None
    """File that gets a line with step, name and value for each number; leave it out to write nothing."""

    def step_end(self, result: StepResult) -> None:
        self._append(result.step, {"loss": result.loss, "learning_rate": result.learning_rate})

    def validation_end(self, result: ValidationResult) -> None:
        self._append(result.step, {**result.metrics})

    def _append(self, step: int, numbers: dict[str, float]) -> None:
        if self.csv_tracker_file is not None:
            with self.csv_tracker_file.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows((step, name, value) for name, value in numbers.items())


@hookimpl
def difftrain_observers() -> Iterable[type[Observer]]:
    return (CsvTracker,)
