"""The micro-batches of one process, each with its part in the optimizer step.

:class:`BatchStream` is the protocol that training uses; :class:`CachedStream` reads cached samples ahead and pins them
for the GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from difftrain.data.streaming.batch_reader import BatchReader
from difftrain.data.streaming.coming_batches import shape_name
from difftrain.data.streaming.epoch_plan import Visit
from difftrain.data.streaming.rounds import Position, Rounds
from difftrain.types import Batch

if TYPE_CHECKING:
    from torch import Tensor


class StreamPosition(Protocol):
    """How far a stream has come, the same in every process; another stream can continue from it."""

    @property
    def epoch(self) -> int:
        """Counts from 0, for messages; always 0 in a stream that has no epochs."""

    @property
    def samples(self) -> int:
        """Samples of this epoch that all processes together have taken, for messages."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what the stream needs to continue from here. A checkpoint keeps it; only the stream interprets it."""


@dataclass(frozen=True, kw_only=True)
class SavedPosition:
    """The :class:`StreamPosition` kept in a checkpoint."""

    epoch: int
    samples: int
    tensors: Mapping[str, Tensor]

    def state(self) -> Mapping[str, Tensor]:
        """Return the tensors as the stream gave them."""
        return self.tensors


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The batch that one process computes at once, and its place in the step."""

    batch: Batch
    weight: float
    """Factor on the loss of each sample, so that the sum over the step is the mean over its samples: those of all
    micro-batches and processes. 0 for a batch that only keeps this process in step, when an epoch ends with fewer
    batches than processes."""
    position: StreamPosition
    """The position after this micro-batch of every process."""
    ends_step: bool
    active: frozenset[str] = frozenset()
    """Ids of the datasets that take part in this step; a stream may leave it empty."""
    shape: str = ""
    """Sizes and number of its images, for messages, as :func:`difftrain.data.streaming.coming_batches.shape_name` gives
    them; a stream may leave it empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    """A :class:`MicroBatch` whose tensors are not read yet."""

    visits: tuple[Visit, ...]
    weight: float
    position: Position
    ends_step: bool
    active: frozenset[str]


class BatchStream(Protocol):
    """Micro-batches from the run's position on, for one of its processes; all processes get equally many.

    A stream opened at another one's position continues as that one would have, bit for bit.
    """

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches; endless, or up to the end of the run's last epoch."""

    def close(self) -> None:
        """Release threads and files; nobody iterates any more."""


class CachedStream:
    """The :class:`BatchStream` of samples in caches."""

    def __init__(
        self, rounds: Rounds, reader: BatchReader, *, process: int = 0, pin_memory: bool = False, ahead: int = 3
    ) -> None:
        """Read ``ahead`` batches before they are asked for."""
        self._rounds = rounds
        self._reader = reader
        self._process = process
        self._pin_memory = pin_memory
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-batch")

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield micro-batches; the next ones are read meanwhile."""
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
            # accelerate averages the gradients over processes, so each weight has to be that many times larger
            weight = self._rounds.processes / sum(part.samples for part in step)
            for number, part in enumerate(step, 1):
                has_own = self._process < len(part.batches)
                yield _Planned(
                    visits=part.batches[self._process if has_own else -1],
                    weight=weight if has_own else 0.0,
                    position=part.position,
                    ends_step=number == len(step),
                    active=part.active,
                )

    def _read(self, visits: tuple[Visit, ...]) -> Batch:
        batch = self._reader.read(visits)
        return _pinned(batch) if self._pin_memory else batch


def _complete(planned: _Planned, reading: Future[Batch]) -> MicroBatch:
    return MicroBatch(
        batch=reading.result(),
        weight=planned.weight,
        position=planned.position,
        ends_step=planned.ends_step,
        active=planned.active,
        shape=shape_name(planned.visits),
    )


def _pinned(batch: Batch) -> Batch:
    return replace(
        batch,
        latents=batch.latents.pin_memory(),
        references=[reference.pin_memory() for reference in batch.references],
        text={name: tensor.pin_memory() for name, tensor in batch.text.items()},
        extras={name: tensor.pin_memory() for name, tensor in batch.extras.items()},
    )
