"""Requests to end a run: finish the step, save, say how to resume, exit with 128 plus the signal's number.

SIGINT (130), SIGTERM (143), SIGHUP of a closed terminal (129), and an output that nobody reads any more, which
counts as SIGPIPE (141).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

ONE_REQUEST_SECONDS = 1.0
"""Launchers such as ``timeout`` signal the process and its group: a second signal this soon is not a second request."""


class Interrupted(BaseException):
    """A signal that arrived before there was anything to save, or a second one."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Catches signals while entered; ``number`` is the one that arrived, or None.

    A signal raises :class:`Interrupted` at once. After :meth:`defer`, the first signal is only noted, so that the loop
    can finish its step and save.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self) -> None:
        self.number: int | None = None
        self.saved = False
        """Whether the run has saved a checkpoint of its own to resume from."""
        self._came_at = 0.0
        self._deferred = False

    def __enter__(self) -> Interrupts:
        # the parent may have told the program to ignore a signal, as nohup does with SIGHUP
        caught = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Let the first signal wait until the loop asks for it.

        Raises:
            Interrupted: If a signal arrived earlier and was swallowed, for example in a callback of a library.
        """
        self._deferred = True
        self._raise_noted()

    def ask(self) -> None:
        """Act on a signal that was swallowed where it arrived, for example in a destructor of a library.

        Raises:
            Interrupted: If a signal arrived that does not wait for the loop.
        """
        if not self._deferred and threading.current_thread() is threading.main_thread():
            self._raise_noted()

    def reader_left(self) -> None:
        """Treat an output that nobody reads any more like a signal. Called by whichever thread wrote last."""
        if self.number is None:
            self.number, self._came_at = signal.SIGPIPE, time.monotonic()
            if not self._deferred and threading.current_thread() is threading.main_thread():
                raise Interrupted(signal.SIGPIPE)

    @contextmanager
    def cut_short(self) -> Iterator[None]:
        """Run a block that may be left half done: a signal ends it at once, and stays noted for the loop.

        A signal that arrived before ends it at its first :meth:`ask`.
        """
        deferred, self._deferred = self._deferred, False
        try:
            yield
        except Interrupted:
            if not deferred:
                raise
        finally:
            self._deferred = deferred

    def _raise_noted(self) -> None:
        if self.number is not None:
            raise Interrupted(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        came_at = time.monotonic()
        if self.number is not None and came_at - self._came_at < ONE_REQUEST_SECONDS:
            return
        repeated = self.number is not None
        self.number, self._came_at = number, came_at
        if repeated or not self._deferred:
            raise Interrupted(number)
