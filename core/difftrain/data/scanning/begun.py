"""Work in parts that begins before its results are asked for, so that other processes need not wait for this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

_Given = TypeVar("_Given")
_Result = TypeVar("_Result")

PARTS_AHEAD = 20
"""More would hold more results of parts that nobody has asked for."""


class Begun(Generic[_Given, _Result]):
    """Generators that stop once, when their work has begun; then they take something and return their results."""

    def __init__(self, parts: Iterable[Generator[None, _Given, list[_Result]]]) -> None:
        """Begin the first parts."""
        self._parts = iter(parts)
        self._begun: deque[Generator[None, _Given, list[_Result]]] = deque()
        for _ in range(PARTS_AHEAD):
            self._begin_one()

    def finish(self, given: _Given) -> list[_Result]:
        """Return the results of all parts, in order; may be called once.

        Args:
            given: What every part takes.
        """
        results: list[_Result] = []
        while self._begun:
            self._begin_one()
            results += _result_of(self._begun.popleft(), given)
        return results

    def _begin_one(self) -> None:
        for part in self._parts:
            next(part)
            self._begun.append(part)
            return


def _result_of(part: Generator[None, _Given, list[_Result]], given: _Given) -> list[_Result]:
    try:
        part.send(given)
    except StopIteration as end:
        found: list[_Result] = end.value
        return found
    raise AssertionError("a part stops once, when its work has begun")
