"""Calls the observers of a run; if one fails, a warning names it and the run continues."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from difftrain.contracts import Observer, RunStart, ValidationResult
from difftrain.errors import DifftrainError
from difftrain.plugins.registry import Registry
from difftrain.types import Reporter, StepResult


class Observers:
    """Reports the events of a run to all observers, in the main process only."""

    def __init__(self, observers: Sequence[Observer], registry: Registry, reporter: Reporter, *, is_main: bool) -> None:
        self._observers = tuple(observers) if is_main else ()
        self._providers = {cls: registry.provider("observer", cls) for cls in registry.classes("observer")}
        self._reporter = reporter
        self._said: set[tuple[str, str]] = set()

    def run_start(self, run: RunStart) -> None:
        self._tell("run_start", lambda observer: observer.run_start(run))

    def step_end(self, result: StepResult) -> None:
        self._tell("step_end", lambda observer: observer.step_end(result))

    def checkpoint_saved(self, step: int, path: Path) -> None:
        self._tell("checkpoint_saved", lambda observer: observer.checkpoint_saved(step, path))

    def validation_end(self, result: ValidationResult) -> None:
        self._tell("validation_end", lambda observer: observer.validation_end(result))

    def run_end(self, step: int, status: str) -> None:
        self._tell("run_end", lambda observer: observer.run_end(step, status))

    @contextmanager
    def reporting_failures_of(self, who: str, *, doing: str = "") -> Iterator[None]:
        """Let code that only watches fail in the block; each kind of error of ``who`` is reported once."""
        try:
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a third-party plugin may raise anything
            error_name = type(error).__name__
            if (who, error_name) in self._said:
                return
            self._said.add((who, error_name))
            # a third-party exception may itself raise when it is asked for its text
            trace = "".join(traceback.format_exception_only(error)).strip()
            text = str(error) if isinstance(error, DifftrainError) else trace
            self._reporter.say(f"warning: {who} failed{doing}, and the run continues without it: {text}")

    def _tell(self, event: str, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            provider = self._providers.get(type(observer))
            with self.reporting_failures_of(
                f"observer {observer.name!r}{f' of {provider}' if provider else ''}", doing=f" in {event}"
            ):
                call(observer)
