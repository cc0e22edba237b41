"""The contract of a training target: how latents become noisy, and what the model then predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from difftrain.types import NoisyBatch

if TYPE_CHECKING:
    from torch import Tensor


class NoiseProcess(ABC):
    """Makes noisy latents and their training target; a family chooses it in ``noise_process()``.

    The core draws a noise level for each sample, shifts it by the family's ``sigma_shift()`` and passes it in. A
    process with discrete steps uses the step nearest to that level.
    """

    @abstractmethod
    def add_noise(self, latents: Tensor, sigma: Tensor, noise: Tensor) -> NoisyBatch:
        """Return the noisy latents, the timestep for the model, and the target to predict.

        Args:
            latents: Clean latents, [B, ...].
            sigma: [B], noise levels in [0, 1] after the shift; 0 is clean, 1 is noise.
            noise: N(0, 1), shaped as ``latents`` and on the same device.
        """


class FlowMatching(NoiseProcess):
    """``x_t = (1 - sigma) x_0 + sigma n`` with the velocity ``n - x_0`` as target, all in float32.

    The timestep is sigma itself; a model that counts to 1000 multiplies it.

    Source: Esser et al., Scaling Rectified Flow Transformers, arXiv:2403.03206, sections 2 and 3.1.
    """

    def add_noise(self, latents: Tensor, sigma: Tensor, noise: Tensor) -> NoisyBatch:
        clean, noise, sigma = latents.float(), noise.float(), sigma.float()
        level = sigma.view(-1, *[1] * (clean.ndim - 1))
        return NoisyBatch(noisy=(1 - level) * clean + level * noise, sigma=sigma, timestep=sigma, target=noise - clean)
