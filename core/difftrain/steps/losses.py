"""Losses: measure how far a prediction is from its target."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from difftrain.contracts import Loss
from difftrain.types import Batch, NoisyBatch

if TYPE_CHECKING:
    from torch import Tensor


class MeanSquaredError(Loss):
    """Plain mean squared error in float32, averaged over all elements of a sample."""

    name: ClassVar[str] = "mse"
    replayable: ClassVar[bool] = True

    def compute(self, prediction: Tensor, noisy: NoisyBatch, batch: Batch) -> Tensor:
        return (prediction.float() - noisy.target).square().flatten(1).mean(1)
