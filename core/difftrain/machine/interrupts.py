"""What asks a run to end: finish the step, save, tell how to go on, exit with 128 and the signal's number.

SIGINT (130), SIGTERM (143), SIGHUP of a terminal that is closed (129), and an output that nobody reads any more, which
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
"""Launchers such as ``timeout`` send a signal to the process and to its group: what comes so soon is no second wish."""


class Interrupted(BaseException):
    """A signal that came while there was nothing to save yet, or for the second time."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Catches the signals while entered; ``number`` is the one that came, or None.

    A signal raises :class:`Interrupted` at once. From :meth:`defer` on, a first signal is only noted, so that the loop
    can finish its step and save.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self) -> None:
        self.number: int | None = None
        self.saved = False
        """Whether the run has saved a checkpoint of its own, to go on from."""
        self._came_at = 0.0
        self._deferred = False

    def __enter__(self) -> Interrupts:
        # whoever started the program may have it ignore one, as nohup does with SIGHUP
        caught = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Let the first signal wait until it is asked for.

        Raises:
            Interrupted: If one came before and was swallowed, as in a callback of a library.
        """
        self._deferred = True
        self._raise_noted()

    def ask(self) -> None:
        """Act on a signal that was swallowed where it came, as in a destructor of a library.

        Raises:
            Interrupted: If one came that does not wait for the loop.
        """
        if not self._deferred and threading.current_thread() is threading.main_thread():
            self._raise_noted()

    def reader_left(self) -> None:
        """Nobody reads the output any more: the same as a signal. Called by whichever thread wrote last."""
        if self.number is None:
            self.number, self._came_at = signal.SIGPIPE, time.monotonic()
            if not self._deferred and threading.current_thread() is threading.main_thread():
                raise Interrupted(signal.SIGPIPE)

    @contextmanager
    def cut_short(self) -> Iterator[None]:
        """What may be left half done: a signal ends the block at once, and stays noted for the loop.

        One that came before ends it at its first :meth:`ask`.
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
