"""Optimizers, through torch-optimi."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from difftrain.contracts import OptimizerFactory

if TYPE_CHECKING:
    import torch
    from torch import nn


MOST_AT_ONCE = 2**30
"""Weights that are updated by operations on all of them at once, which is faster."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Share of a running mean that one step keeps."""


class AdamWBf16(OptimizerFactory):
    """AdamW on bfloat16 weights; Kahan summation keeps the updates that bfloat16 would round away."""

    name: ClassVar[str] = "adamw_bf16"
    parameter_dtype: ClassVar[str] = "bfloat16"
    usual_learning_rates: ClassVar[tuple[float, float] | None] = (3e-5, 1e-3)

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradients."""
    weight_decay: float = Field(0.01, ge=0)
    """Pull of the weights towards zero, times the learning rate."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator."""

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float) -> torch.optim.Optimizer:
        from optimi import AdamW

        # set foreach: optimi enables its Triton kernels wherever it finds them, and a run must not
        # change its arithmetic with the packages that happen to be installed
        optimizer: torch.optim.Optimizer = AdamW(
            [parameter for _, parameter in parameters],
            lr=learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            eps=self.eps,
            foreach=True,
            triton=False,
        )
        return optimizer


class OptimiLion(OptimizerFactory):
    """Lion: every weight moves by the learning rate, in the direction of a running mean's sign.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675, algorithm 2.
    """

    name: ClassVar[str] = "optimi-lion"
    usual_learning_rates: ClassVar[tuple[float, float] | None] = (3e-6, 5e-5)

    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decay of the mean that gives the sign, and of the mean that is kept."""
    weight_decay: float = Field(0.0, ge=0)
    """Pull of the weights towards zero, times the learning rate."""

    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float) -> torch.optim.Optimizer:
        from optimi import Lion

        optimizer: torch.optim.Optimizer = Lion(
            [parameter for _, parameter in parameters],
            lr=learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            # all at once, it makes a copy of all weights
            foreach=sum(parameter.numel() for _, parameter in parameters) <= MOST_AT_ONCE,
            triton=False,
        )
        return optimizer
