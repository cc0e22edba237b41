"""Reads many small files: one after another, in threads where the disk is slow, in processes if there are very many.

Threads hide the latency of a disk or network. Where there is none they only take turns, and lose time by it: reading
and hashing a JPEG of 127 KB took 36 microseconds in one thread, 50 in six, and 23 in two processes (docs/log.md).
"""

from __future__ import annotations

import marshal
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Work = Callable[[Sequence[_Item]], list[_Result]]
"""Gives a result for each item."""
Reading = Iterator[tuple[Sequence[_Item], list[_Result]]]
"""Parts of the items with their results."""

FEWEST_FOR_PROCESSES = 5_000
"""Below this, starting processes takes longer than the work."""
_A_TASK = 64
_A_PROCESS_TASK = 512
_SLOW = 500e-6
"""Seconds for one file from which on threads are worth their price."""


class ManyFiles:
    """Works on long lists of files. Use it as a context manager."""

    def __init__(self, count: int) -> None:
        """Expect about ``count`` files in all."""
        self._cores = os.cpu_count() or 1
        self._can_leave = self._cores > 1
        """Whether processes can be started, as far as is known."""
        self._wants_processes = False
        self.expect(count)
        self._threads: ThreadPoolExecutor | None = None
        self._processes: ProcessPoolExecutor | None = None

    def expect(self, count: int) -> None:
        """Expect about ``count`` files more."""
        self._wants_processes = self._can_leave and (self._wants_processes or count >= FEWEST_FOR_PROCESSES)

    def start_for(self, count: int) -> None:
        """Start the processes, if so many files are reason enough: they need some time before they can work.

        Args:
            count: Files of any kind; half of them may be captions.
        """
        if self._can_leave and self._processes is None and count >= 2 * FEWEST_FOR_PROCESSES:
            self._started_processes().submit(os.getpid)  # any work starts all of them

    @property
    def have_started(self) -> bool:
        """Whether there are processes."""
        return self._processes is not None

    def aside(self, work: Callable[[_Item], _Result], item: _Item) -> Callable[[], _Result]:
        """Begin to work on one item in another process, after they have started; return what waits for the result."""
        assert self._processes is not None, "see have_started"
        try:
            future = self._processes.submit(work, item)
        except BrokenProcessPool:
            return partial(work, item)
        return partial(self._result_of, future, work, item)

    def _result_of(self, future: Future[_Result], work: Callable[[_Item], _Result], item: _Item) -> _Result:
        try:
            return future.result()
        except BrokenProcessPool:
            self._can_leave = self._wants_processes = False
            return work(item)

    def would_leave(self, count: int) -> bool:
        """Return whether so many items would be sent to other processes, if they may be."""
        return self._wants_processes and count >= _A_PROCESS_TASK

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._threads, self._processes):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def work(
        self,
        work: Work[_Item, _Result],
        items: Sequence[_Item],
        *,
        may_leave: bool = False,
        slow: float = _SLOW,
        size: int | None = None,
    ) -> Reading[_Item, _Result]:
        """Return parts of the items with their results, in order. In processes, the work begins at once.

        Args:
            work: May run in several threads at once.
            may_leave: Whether work and items can be sent to other processes.
            slow: Seconds for one item from which on threads take over.
            size: Items that a thread takes at once; None is the usual number.
        """
        if not (may_leave and self.would_leave(len(items))):
            return self._here(work, items, slow, size or _A_TASK)
        try:
            return self._completed(self._in_processes(work, items), work, items, slow)
        except BrokenProcessPool:
            self._can_leave = self._wants_processes = False
            return self._here(work, items, slow, size or _A_TASK)

    def _completed(
        self,
        begun: Reading[_Item, _Result],
        work: Work[_Item, _Result],
        items: Sequence[_Item],
        slow: float,
    ) -> Reading[_Item, _Result]:
        """Yield what processes give; if one dies or cannot start, do the rest in this one."""
        done = 0
        try:
            for part, results in begun:
                done += len(part)
                yield part, results
        except BrokenProcessPool:
            self._can_leave = self._wants_processes = False
            yield from self._here(work, items[done:], slow, _A_TASK)

    def _here(
        self, work: Work[_Item, _Result], items: Sequence[_Item], slow: float, size: int
    ) -> Reading[_Item, _Result]:
        done = 0
        for part in _parts(items, size):
            started = time.perf_counter()
            results = work(part)
            done += len(part)
            is_slow = time.perf_counter() - started > slow * len(part)
            yield part, results
            if is_slow:
                break
        if done < len(items):
            self._threads = self._threads or ThreadPoolExecutor(max_workers=min(32, 2 * self._cores + 2))
            yield from _mapped(self._threads, work, items[done:], size)

    def _in_processes(self, work: Work[_Item, _Result], items: Sequence[_Item]) -> Reading[_Item, _Result]:
        parts = list(_parts(items, _A_PROCESS_TASK))
        sent = self._started_processes().map(partial(_all_of, work), parts)
        return zip(parts, map(_received, sent), strict=True)

    def _started_processes(self) -> Executor:
        if self._processes is None:
            self._processes = ProcessPoolExecutor(
                max_workers=self._cores,
                # a forked child of a process with threads may hang
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin_as_child,
            )
        return self._processes


def _begin_as_child() -> None:
    """Leave the end of a process that works for another one to that one, and end with it if it is killed.

    Otherwise they wait for work for ever: each holds the end of the queue open that the others wait for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the children too
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _all_of(work: Work[_Item, _Result], items: Sequence[_Item]) -> _Sent:
    """Work on a part in a process of its own; in threads there too if the disk is slow."""
    with ManyFiles(0) as files:
        return _to_send([result for _, results in files.work(work, items) for result in results])


_Sent = tuple[Any, bytes | list[Any]]
"""The class of results that are named tuples, and the results as one text; or None and the results."""


def _to_send(results: list[Any]) -> _Sent:
    """Return what takes another process less time to receive than many objects: it is busier than those that read."""
    classes = set(map(type, results))
    cls = classes.pop() if len(classes) == 1 else tuple
    try:
        if hasattr(cls, "_make"):
            return cls, marshal.dumps(list(map(tuple, results)))
        return None, marshal.dumps(results)
    except ValueError:  # some are objects, such as errors
        return None, results


def _received(sent: _Sent) -> list[Any]:
    cls, results = sent
    if isinstance(results, list):
        return results
    rows: list[Any] = marshal.loads(results)
    return rows if cls is None else list(map(cls._make, rows))


def _mapped(pool: Executor, work: Work[_Item, _Result], items: Sequence[_Item], size: int) -> Reading[_Item, _Result]:
    parts = list(_parts(items, size))
    return zip(parts, pool.map(work, parts), strict=True)


def _parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
