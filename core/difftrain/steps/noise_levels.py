"""Noise levels: the samplers that draw them, and the shift. How they are applied is up to the family."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from difftrain.contracts import TimestepSampler

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels towards noise: ``s * sigma / (1 + (s - 1) * sigma)``.

    Args:
        sigma: [B], in [0, 1].
        shift: s > 0; 1 leaves sigma unchanged.

    Source: arXiv:2403.03206, section 5.3.2, equation 23.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


class SigmoidSampler(TimestepSampler):
    """``sigmoid(scale * N(0, 1))``: most steps at medium noise levels.

    Source: Esser et al., Scaling Rectified Flow Transformers, arXiv:2403.03206, section 3.1.
    """

    name: ClassVar[str] = "sigmoid"

    flow_sigmoid_scale: float = Field(1.0, gt=0)
    """Spread of the noise levels; a larger one reaches closer to 0 and 1."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        import torch

        return torch.sigmoid(self.flow_sigmoid_scale * torch.randn(count, generator=generator))


class UniformSampler(TimestepSampler):
    """Every noise level is equally likely."""

    name: ClassVar[str] = "uniform"

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        import torch

        return torch.rand(count, generator=generator)


class BetaSampler(TimestepSampler):
    """Beta distribution of noise levels."""

    name: ClassVar[str] = "beta"

    flow_beta_schedule_alpha: float = Field(2.0, gt=0)
    """Larger moves noise levels towards 1."""
    flow_beta_schedule_beta: float = Field(2.0, gt=0)
    """Larger moves noise levels towards 0."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        import torch

        # torch's Beta takes no generator; a ratio of gamma draws has the same distribution
        shapes = torch.tensor([self.flow_beta_schedule_alpha, self.flow_beta_schedule_beta]).expand(count, 2)
        first, second = torch._standard_gamma(shapes, generator=generator).unbind(-1)
        return first / (first + second)
