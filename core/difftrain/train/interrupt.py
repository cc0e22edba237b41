"""SIGINT and SIGTERM: finish the step, save, tell how to go on, exit with 130 or 143."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupted(BaseException):
    """A signal that came while there was nothing to save yet, or for the second time."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_status(self) -> int:
        return 128 + self.number


class Interrupts:
    """Catches both signals while entered; ``number`` is the one that came, or None.

    After ``defer(True)`` a first signal is only noted, so that the loop can finish its step and save; before that,
    and at the second signal, :class:`Interrupted` is raised at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False

    def __enter__(self) -> Interrupts:
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self, on: bool) -> None:
        """Whether the first signal waits for the loop to ask."""
        self._deferred = on

    def _note(self, number: int, frame: FrameType | None) -> None:
        repeated = self.number is not None
        self.number = number
        if repeated or not self._deferred:
            raise Interrupted(number)

    @property
    def exit_status(self) -> int:
        return 0 if self.number is None else 128 + self.number
