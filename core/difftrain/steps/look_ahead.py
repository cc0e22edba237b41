"""Takes the first micro-batch of the next step, and prepares it while the GPU still computes this one.

Drawing noise, copying and building the model's input take the host some 5 ms at 1024 px, in which the GPU would wait
(docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from difftrain.data.streaming.stream import MicroBatch
from difftrain.errors import DifftrainError


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    micro: MicroBatch
    given: Any
    """None if there was no memory for it."""
    draws: list[Tensor]
    """States of the generators after it was prepared."""


class LookAhead:
    """What was taken ahead of the step that needs it."""

    def __init__(self) -> None:
        self._prepared: _Prepared | None = None
        self._failure: DifftrainError | None = None

    def look(self, micro_batches: Iterator[MicroBatch], prepare: Callable[[MicroBatch], Any]) -> None:
        """Take and prepare a micro-batch, if there is one; it is kept until :meth:`done`.

        Args:
            prepare: Draws as at the beginning of the step that needs it.
        """
        try:
            micro = next(micro_batches, None)
        except DifftrainError as failure:  # a batch that cannot be read stops the step that needs it, not this one
            self._failure = failure
            return
        if micro is None:
            return
        before = _states()  # the update that follows may draw too
        try:
            given = prepare(micro)
        except torch.OutOfMemoryError:
            given = None  # its own step can make room
        self._prepared = _Prepared(micro=micro, given=given, draws=_states())
        _restore(before)

    def then(self, micro_batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """Return the micro-batch that was taken, and then the others.

        Raises:
            DifftrainError: If it could not be read.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return micro_batches if self._prepared is None else chain([self._prepared.micro], micro_batches)

    def given_for(self, micro: MicroBatch) -> Any:
        """Return a micro-batch as it was prepared, with the generators as they were then; None if it was not."""
        prepared = self._prepared
        if prepared is None or prepared.micro is not micro or prepared.given is None:
            return None
        _restore(prepared.draws)
        return prepared.given

    def done(self) -> None:
        """Forget the micro-batch: its step has taken it."""
        self._prepared = None


def _states() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def _restore(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
