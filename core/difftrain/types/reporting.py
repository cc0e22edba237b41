"""Progress and results, as users and observers see them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One optimizer step, as observers see it."""

    step: int
    """Counts from 1."""
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    samples: int
    """Samples of this step over all processes."""
    epoch: int
    skipped: bool = False
    """True when the loss or the gradient was not finite, so that the weights did not change."""
    metrics: Mapping[str, float] = field(default_factory=dict)


class Phase(Protocol):
    """A phase of the start-up that is running, with a count that is shown."""

    def advance(self, count: int = 1, item: str = "") -> None:
        """Count on; ``item`` names the work in hand, shown when nothing moves for a minute."""

    def begin(self, item: str) -> None:
        """Show what is worked on from now on, for work whose parts take many seconds each."""


class Reporter(Protocol):
    """Shows what a run is doing; given to every stage that can take more than two seconds."""

    def phase(self, name: str, total: int | None = None) -> AbstractContextManager[Phase]:
        """A named start-up phase, with a progress bar and an ETA when ``total`` is known."""

    def say(self, text: str) -> None:
        """Show the user one line."""
