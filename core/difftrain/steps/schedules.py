"""Learning-rate schedules: a warm-up from zero, then constant, linear or cosine. Pure."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

from difftrain.contracts import Schedule


class _WarmUpThen(Schedule):
    """Rises linearly over the warm-up; the step after it has the full rate."""

    def factor(self, step: int, warmup_steps: int, total_steps: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        remaining = max(1, total_steps - warmup_steps)
        return self.decay(min(1.0, (step - warmup_steps) / remaining))

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Return the factor after a share (0 to 1) of the steps that follow the warm-up."""


class Constant(_WarmUpThen):
    """The full rate to the end."""

    name: ClassVar[str] = "constant"

    def decay(self, progress: float) -> float:
        return 1.0


class ConstantWithWarmup(Constant):
    """Same as ``constant``, under the name that other trainers use."""

    name: ClassVar[str] = "constant_with_warmup"


class Linear(_WarmUpThen):
    """Falls linearly to zero."""

    name: ClassVar[str] = "linear"

    def decay(self, progress: float) -> float:
        return 1.0 - progress


class Cosine(_WarmUpThen):
    """Half a cosine to zero. Source: Loshchilov and Hutter, SGDR, arXiv:1608.03983, equation 5, one cycle."""

    name: ClassVar[str] = "cosine"

    def decay(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class Sine(Schedule):
    """Half a sine over the whole run: from zero to the full rate in the middle, and back. Needs no warm-up."""

    name: ClassVar[str] = "sine"

    def factor(self, step: int, warmup_steps: int, total_steps: int) -> float:
        return math.sin(math.pi * min(1.0, (step + 1) / (total_steps + 1)))
