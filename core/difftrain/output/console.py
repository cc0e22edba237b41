"""What the user sees: named start-up phases, then one progress bar of the training.

On a terminal these are live bars; elsewhere (a log file, a container) they are plain lines, at most one every
few seconds. A phase in which nothing moves for a minute says what it is waiting for.
"""

from __future__ import annotations

import errno
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, ClassVar, TextIO, cast

from pydantic import PrivateAttr
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from difftrain.contracts import Observer, RunStart
from difftrain.errors import printable
from difftrain.types import Phase, Reporter, StepResult

STALL_SECONDS = 60.0
LINE_SECONDS = 5.0
"""Interval of progress lines when there is no terminal."""


def duration(seconds: float) -> str:
    """Return ``0:07``, ``12:30``, ``3:02:05``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def make_reporter(
    *, quiet: bool = False, reader_left: Callable[[], None] | None = None, ask: Callable[[], None] | None = None
) -> Reporter:
    """Return a reporter: live bars on a terminal, lines elsewhere, nothing if ``quiet`` (all processes but the first).

    Args:
        reader_left: Called once when standard error is a pipe or terminal that nobody reads any more; nothing is
            written after that. None lets the error pass.
        ask: Called whenever a phase begins or moves on; it may raise, to end the run.
    """
    if quiet or sys.stderr is None:
        return SilentReporter()
    output = sys.stderr if reader_left is None else cast(IO[str], _WatchedOutput(sys.stderr, reader_left))
    return ConsoleReporter(Console(file=output, highlight=False, soft_wrap=True), ask)


class _WatchedOutput:
    """Passes text to a stream until its reader has left, then discards it."""

    def __init__(self, stream: TextIO, reader_left: Callable[[], None]) -> None:
        self._stream = stream
        self._reader_left = reader_left
        self._closed = False

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        if self._closed:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            # a full disk or a closed file loses the text, not the run
            self._closed = True
            # a closed pipe; a terminal that hung up
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
                self._reader_left()


class SilentReporter:
    """Shows nothing."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        yield _Ignored()

    def say(self, text: str) -> None: ...


class _Ignored:
    def advance(self, count: int = 1, item: str = "") -> None: ...

    def begin(self, item: str) -> None: ...


class ConsoleReporter:
    """Writes to standard error, so that standard output stays free for results."""

    def __init__(self, console: Console, ask: Callable[[], None] | None = None) -> None:
        self.console = console
        self._ask = ask or (lambda: None)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        self._ask()
        with _PhaseLine(self.console, name, total, self._ask) as phase:
            yield phase


class _PhaseLine:
    """One phase: a bar or lines while it runs, then one line with its count and time."""

    def __init__(self, console: Console, name: str, total: int | None, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._console, self._name, self._total = console, name, total
        self._count, self._place = 0, ""
        self._started = self._moved = self._shown = time.monotonic()
        self._done = threading.Event()
        self._bar = Progress(*_phase_columns(total), console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task(name, total=total) if self._bar else None

    def __enter__(self) -> _PhaseLine:
        if self._bar:
            self._bar.start()
        threading.Thread(target=self._watch, daemon=True, name="watch-phase").start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._done.set()
        if self._bar:
            self._bar.stop()
        took = duration(time.monotonic() - self._started)
        count = f" {self._count}" + (f"/{self._total}" if self._count != self._total else "") if self._total else ""
        ended = "" if error_type is None else " (stopped)"
        self._console.print(f"{self._name}{count}: {took}{ended}", markup=False)

    def advance(self, count: int = 1, item: str = "") -> None:
        self._ask()
        self._count += count
        self._place = f" after {printable(item)}" if item else self._place
        self._moved = time.monotonic()
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=count)
        elif self._total and self._count < self._total and self._moved - self._shown > LINE_SECONDS:
            self._shown = self._moved
            self._console.print(f"{self._name} {self._count}/{self._total}, {self._left()}", markup=False)

    def begin(self, item: str) -> None:
        self._ask()
        self._place = f" in {printable(item)}"
        self._moved = time.monotonic()
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=item)
        else:
            left = f", {self._left()}" if self._count else ""
            self._console.print(f"{printable(item)}{left}", markup=False)

    def _left(self) -> str:
        rate = (self._moved - self._started) / max(1, self._count)
        return f"{duration(rate * ((self._total or 0) - self._count))} left"

    def _watch(self) -> None:
        while not self._done.wait(STALL_SECONDS / 4):
            if time.monotonic() - self._moved > STALL_SECONDS:
                waited = duration(time.monotonic() - self._moved)
                text = f"{self._name}: nothing finished for {waited}{self._place}; still waiting"
                self._console.print(text, markup=False)
                self._done.wait(STALL_SECONDS)


def _phase_columns(total: int | None) -> list[ProgressColumn]:
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=30)]
    if total is None:
        return [*columns, TimeElapsedColumn()]
    return [*columns, MofNCompleteColumn(), TextColumn("eta"), TimeRemainingColumn()]


class TrainingBar(Observer):
    """Shows loss, seconds per step and time left, while it is entered."""

    name: ClassVar[str] = "progress bar"
    _console: Console | None = PrivateAttr()
    _total: int = PrivateAttr(0)
    _smooth_loss: float | None = PrivateAttr(None)
    _shown: float = PrivateAttr(0.0)
    _bar: Progress | None = PrivateAttr(None)
    _task: TaskID = PrivateAttr()
    _seconds: float | None = PrivateAttr(None)
    _stepped: bool = PrivateAttr(False)

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._console = reporter.console if isinstance(reporter, ConsoleReporter) else None

    def run_start(self, run: RunStart) -> None:
        self._total = run.total_steps
        if self._console and self._console.is_terminal:
            columns = (
                TextColumn("train"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(
                "train", total=run.total_steps, completed=run.first_step, note="first step ..."
            )

    def __enter__(self) -> TrainingBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def step_end(self, result: StepResult) -> None:
        """Show one step; the loss shown is a running mean over about twenty steps."""
        if self._console is None:
            return
        note = self._note(result)
        if self._bar:
            self._bar.update(self._task, completed=result.step, note=note)
        elif time.monotonic() - self._shown > LINE_SECONDS or result.step == self._total:
            self._shown = time.monotonic()
            self._console.print(f"step {result.step}/{self._total}  {note}", markup=False)

    def _note(self, result: StepResult) -> str:
        if math.isfinite(result.loss):
            mean = self._smooth_loss
            self._smooth_loss = result.loss if mean is None else 0.95 * mean + 0.05 * result.loss
        # the first step warms up kernels and allocators; it says nothing about the speed
        seconds = result.seconds if self._seconds is None else 0.9 * self._seconds + 0.1 * result.seconds
        self._seconds = seconds if self._stepped else None
        self._stepped = True
        mean_loss = "" if self._smooth_loss is None else f" (mean {self._smooth_loss:.4f})"
        left_out = "  update skipped: not finite" if result.skipped else ""
        return (
            f"loss {result.loss:.4f}{mean_loss}{left_out}  lr {result.learning_rate:.2e}  "
            f"{seconds:.2f} s/step  eta {duration(seconds * (self._total - result.step))}"
        )
