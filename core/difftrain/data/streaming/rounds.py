"""Deals the batches of one epoch after another to processes and steps. Pure; reads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from difftrain.data.streaming.epoch import EpochRules, Visit, epochs_vary, plan_epoch
from difftrain.errors import CheckpointError
from difftrain.types import Sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a run has come in its data, independent of batch size and process count."""

    epoch: int = 0
    samples: int = 0
    """Samples of this epoch that all processes together have taken."""
    order: Sequence[int] = field(default=(), compare=False, repr=False)
    """Numbers of the epoch's visits in the order they are taken; the first ``samples`` of them were."""

    @property
    def taken(self) -> Sequence[int]:
        """Numbers of this epoch's visits that were taken, see
        :func:`difftrain.data.streaming.epoch.visit_number`.
        """
        return self.order[: self.samples]

    def state(self) -> dict[str, Tensor]:
        """Return ``taken`` [samples], which is all that resuming needs."""
        import torch

        return {"taken": torch.tensor(list(self.taken), dtype=torch.int64)}

    @classmethod
    def restored(cls, epoch: int, state: Mapping[str, Tensor]) -> Position:
        """Return the position where a run resumes.

        Args:
            state: The result of :meth:`state`.

        Raises:
            CheckpointError: If it does not come from :meth:`state`.
        """
        if state.keys() != {"taken"}:
            raise CheckpointError(
                "the checkpoint's position comes from another kind of data: it has "
                f"{', '.join(sorted(state)) or 'nothing'} where this run needs the visits that were taken\n"
                "hint: resume with the datasets that the checkpoint was trained with"
            )
        order = state["taken"].tolist()
        return cls(epoch=epoch, samples=len(order), order=order)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """A batch for each process, or for only the first ones at the end of an epoch."""

    batches: Sequence[tuple[Visit, ...]]
    position: Position
    """The position after this round."""

    @property
    def samples(self) -> int:
        return sum(map(len, self.batches))


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """All rounds of a run from its position on."""

    samples: Sequence[Sample]
    rules: EpochRules
    start: Position = field(default_factory=Position)
    micro_batches: int = 1
    """Rounds per optimizer step; the very last step has fewer if the last epoch ends in it."""
    epochs: int | None = None
    """Total number of epochs; None is no limit."""
    processes: int = 1

    def steps(self) -> Iterator[list[Round]]:
        """Yield the rounds of each optimizer step. A step may span two epochs, lest small datasets have small steps."""
        rounds = self._rounds()
        while step := list(islice(rounds, self.micro_batches)):
            yield step

    def steps_left(self) -> int | None:
        """Return the optimizer steps from the start to the end of the last epoch; None if there is no last epoch."""
        if self.epochs is None:
            return None
        left = range(self.start.epoch, self.epochs)
        if epochs_vary(self.samples, self.rules) or len(left) <= 2:
            return -(-sum(map(self._rounds_of, left)) // self.micro_batches)
        # the epoch already begun, and full ones
        rounds = self._rounds_of(left[0]) + (len(left) - 1) * self._rounds_of(left[1])
        return -(-rounds // self.micro_batches)

    def _rounds(self) -> Iterator[Round]:
        epoch = self.start.epoch
        while self.epochs is None or epoch < self.epochs:
            batches = self.batches_of(epoch)
            order = [*self._taken_of(epoch), *(visit.number for batch in batches for visit in batch)]
            reached = len(self._taken_of(epoch))
            for first in range(0, len(batches), self.processes):
                now = batches[first : first + self.processes]
                reached += sum(map(len, now))
                yield Round(batches=now, position=Position(epoch=epoch, samples=reached, order=order))
            epoch += 1

    def _rounds_of(self, epoch: int) -> int:
        return -(-len(self.batches_of(epoch)) // self.processes)

    def batches_of(self, epoch: int) -> list[tuple[Visit, ...]]:
        """Return the batches of an epoch that are left after the start, in order."""
        return plan_epoch(self.samples, epoch, self.rules, frozenset(self._taken_of(epoch)))

    def _taken_of(self, epoch: int) -> Sequence[int]:
        return self.start.taken if epoch == self.start.epoch else ()
