"""Deals the batches of one epoch after another to processes and steps. Pure; reads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from difftrain.data.packed.sample_table import SampleTable
from difftrain.data.streaming.epoch import epochs_vary, plan_epoch
from difftrain.data.streaming.epoch_plan import EpochPlan, Visit
from difftrain.data.streaming.set_rules import EpochRules
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
    order: Sequence[int] | npt.NDArray[np.int64] = field(default=(), compare=False, repr=False)
    """Numbers of the epoch's visits in the order they are taken; the first ``samples`` of them were."""

    @property
    def taken(self) -> Sequence[int] | npt.NDArray[np.int64]:
        """Numbers of this epoch's visits that were taken, see
        :func:`difftrain.data.streaming.draws.visit_numbers`.
        """
        return self.order[: self.samples]

    def state(self) -> dict[str, Tensor]:
        """Return ``taken`` [samples], which is all that resuming needs."""
        import torch

        return {"taken": torch.tensor(np.asarray(self.taken, dtype=np.int64))}

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
    active: frozenset[str] = frozenset()
    """Ids of the datasets that take part."""

    @property
    def samples(self) -> int:
        return sum(map(len, self.batches))


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """All rounds of a run from its position on."""

    samples: Sequence[Sample]
    rules: EpochRules
    start: Position = field(default_factory=Position)
    step: int = 0
    """Optimizer steps done before the start; the next one is ``step + 1``."""
    micro_batches: int = 1
    """Rounds per optimizer step; the very last step has fewer if the data ends in it."""
    epochs: int | None = None
    """Total number of epochs; None is no limit."""
    processes: int = 1

    @cached_property
    def names(self) -> frozenset[str]:
        """Ids of the datasets that have samples."""
        return frozenset(SampleTable.of(self.samples).datasets)

    @cached_property
    def is_scheduled(self) -> bool:
        """Whether some steps or epochs may use other datasets than others."""
        return any(self.rules.of(name).is_scheduled for name in self.names)

    def steps(self) -> Iterator[list[Round]]:
        """Yield the rounds of each optimizer step. A step may span two epochs, lest small datasets have small steps."""
        dealer = _Dealer(self)
        step = self.step
        while rounds := list(islice(dealer.rounds(step + 1), self.micro_batches)):
            yield rounds
            step += 1

    def steps_left(self) -> int | None:
        """Return the optimizer steps from the start to the end of the last epoch; None if there is no last epoch."""
        if self.epochs is None:
            return None
        left = range(self.start.epoch, self.epochs)
        if self.is_scheduled:
            return sum(1 for _ in self.steps())
        if epochs_vary(self.samples, self.rules) or len(left) <= 2:
            return -(-sum(map(self._rounds_of, left)) // self.micro_batches)
        # the epoch already begun, and full ones
        rounds = self._rounds_of(left[0]) + (len(left) - 1) * self._rounds_of(left[1])
        return -(-rounds // self.micro_batches)

    def batches_of(self, epoch: int) -> EpochPlan:
        """Return the batches of an epoch that are left after the start, in order, with the next step's datasets."""
        active = self.rules.active(self.names, step=self.step + 1, epoch=epoch)
        return plan_epoch(self.samples, epoch, self.rules, self.taken_of(epoch), active)

    def taken_of(self, epoch: int) -> Sequence[int] | npt.NDArray[np.int64]:
        """Return the numbers of the visits of an epoch that were taken before the start."""
        return self.start.taken if epoch == self.start.epoch else ()

    def _rounds_of(self, epoch: int) -> int:
        return -(-len(self.batches_of(epoch)) // self.processes)


class _Dealer:
    """Deals one round after another, and plans the rest of an epoch anew when other datasets take part."""

    def __init__(self, run: Rounds) -> None:
        self._run = run
        self._epoch = run.start.epoch
        self._order: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._reached = 0
        self._active: frozenset[str] | None = None
        self._batches: EpochPlan | None = None
        self._next = 0
        """The first batch that was not dealt."""
        self._begin(run.taken_of(self._epoch))

    def rounds(self, step: int) -> Iterator[Round]:
        """Yield rounds for a step, which counts from 1, while there are any."""
        run = self._run
        while (run.epochs is None or self._epoch < run.epochs) and run.rules.go_on(
            run.names, step=step, epoch=self._epoch
        ):
            active = run.rules.active(run.names, step=step, epoch=self._epoch)
            if active != self._active:
                self._plan(active)
            if self._batches is not None and self._next < len(self._batches):
                yield self._round(self._batches, active)
            else:
                self._epoch += 1
                self._begin(())

    def _begin(self, taken: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Begin an epoch of which some visits may be taken."""
        self._order, self._reached, self._active = np.asarray(taken, dtype=np.int64), len(taken), None

    def _plan(self, active: frozenset[str]) -> None:
        taken = self._order[: self._reached]
        run, self._active = self._run, active
        self._batches, self._next = plan_epoch(run.samples, self._epoch, run.rules, taken, active), 0
        # a new array: positions of earlier rounds hold on to theirs
        self._order = np.concatenate([taken, self._batches.numbers])

    def _round(self, planned: EpochPlan, active: frozenset[str]) -> Round:
        batches = planned[self._next : self._next + self._run.processes]
        self._next += len(batches)
        self._reached += sum(map(len, batches))
        position = Position(epoch=self._epoch, samples=self._reached, order=self._order)
        return Round(batches=batches, position=position, active=active)
