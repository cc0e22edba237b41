"""The micro-batches of one process, each with its part in the optimizer step.

:class:`BatchStream` is what training asks of one; :class:`CachedStream` reads those of samples whose encoded form is
cached, ahead and pinned for the GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from difftrain.data.streaming.batch_reader import BatchReader
from difftrain.data.streaming.epoch import Visit
from difftrain.data.streaming.rounds import Position, Rounds
from difftrain.types import Batch

if TYPE_CHECKING:
    from torch import Tensor


class StreamPosition(Protocol):
    """How far a stream has come, the same in every process; what it goes on from."""

    @property
    def epoch(self) -> int:
        """Counts from 0, to be told; always 0 in a stream that knows of none."""

    @property
    def samples(self) -> int:
        """Samples of this epoch that all processes together have taken, to be told."""

    def state(self) -> Mapping[str, Tensor]:
        """What the stream needs to go on from here. A checkpoint keeps it; only the stream looks into it."""


@dataclass(frozen=True, kw_only=True)
class SavedPosition:
    """The :class:`StreamPosition` that a checkpoint has kept."""

    epoch: int
    samples: int
    tensors: Mapping[str, Tensor]

    def state(self) -> Mapping[str, Tensor]:
        """As the stream gave it."""
        return self.tensors


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one process computes at once."""

    batch: Batch
    weight: float
    """What the loss of each sample is multiplied by, so that the sum over the step is the mean over its samples: those
    of all micro-batches and processes. 0 for a batch that is there only to keep this process in step, where an epoch
    ends with less batches than processes."""
    position: StreamPosition
    """After this micro-batch of every process."""
    ends_step: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    """A :class:`MicroBatch` whose tensors are not read yet."""

    visits: tuple[Visit, ...]
    weight: float
    position: Position
    ends_step: bool


class BatchStream(Protocol):
    """Micro-batches from where the run stands, for one of its processes; as many of them in each.

    One that is opened where another one stood goes on as that one would have, bit for bit.
    """

    def __iter__(self) -> Iterator[MicroBatch]:
        """The micro-batches; without end, or up to that of the run's last epoch."""

    def close(self) -> None:
        """Let go of threads and files; nobody iterates any more."""


class CachedStream:
    """The :class:`BatchStream` of samples in caches."""

    def __init__(
        self, rounds: Rounds, reader: BatchReader, *, process: int = 0, pin_memory: bool = False, ahead: int = 3
    ) -> None:
        """With ``ahead`` batches read before they are asked for."""
        self._rounds = rounds
        self._reader = reader
        self._process = process
        self._pin_memory = pin_memory
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-batch")

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yields micro-batches; the next ones are read meanwhile."""
        waiting: deque[tuple[_Planned, Future[Batch]]] = deque()
        for planned in self._planned():
            waiting.append((planned, self._pool.submit(self._read, planned.visits)))
            if len(waiting) > self._ahead:
                yield _complete(*waiting.popleft())
        while waiting:
            yield _complete(*waiting.popleft())

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _planned(self) -> Iterator[_Planned]:
        for step in self._rounds.steps():
            # accelerate takes the mean of the processes' gradients, so that each has to count as many times more
            weight = self._rounds.processes / sum(part.samples for part in step)
            for number, part in enumerate(step, 1):
                has_own = self._process < len(part.batches)
                yield _Planned(
                    visits=part.batches[self._process if has_own else -1],
                    weight=weight if has_own else 0.0,
                    position=part.position,
                    ends_step=number == len(step),
                )

    def _read(self, visits: tuple[Visit, ...]) -> Batch:
        batch = self._reader.read(visits)
        return _pinned(batch) if self._pin_memory else batch


def _complete(planned: _Planned, reading: Future[Batch]) -> MicroBatch:
    return MicroBatch(
        batch=reading.result(), weight=planned.weight, position=planned.position, ends_step=planned.ends_step
    )


def _pinned(batch: Batch) -> Batch:
    return Batch(
        latents=batch.latents.pin_memory(),
        references=[reference.pin_memory() for reference in batch.references],
        text={name: tensor.pin_memory() for name, tensor in batch.text.items()},
        keys=batch.keys,
        extras={name: tensor.pin_memory() for name, tensor in batch.extras.items()},
    )
