"""The denoiser of :class:`difftrain.testing.TinyFamily`; in its own module because it needs torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTH = 32


class TinyDenoiser(nn.Module):
    """Five linear layers, applied cell by cell."""

    def __init__(self, text_width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(3, WIDTH)
        self.see = nn.Linear(3, WIDTH, bias=False)
        self.words = nn.Linear(text_width + 1, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.leave = nn.Linear(WIDTH, 3)

    def forward(self, noisy: Tensor, sigma: Tensor, text: Tensor, references: Sequence[Tensor]) -> Tensor:
        """Return the velocity, [B, 3, h, w]; references of other sizes are resized to the target's."""
        seen = torch.zeros_like(noisy)
        for reference in references:
            resized = nn.functional.interpolate(reference, size=noisy.shape[-2:], mode="nearest")
            seen = seen + resized.to(noisy.dtype) / len(references)
        words = self.words(torch.cat([text, sigma[:, None].to(text.dtype)], dim=1))
        hidden = self.enter(_last(noisy)) + self.see(_last(seen)) + words[:, None, None]
        hidden = hidden + self.middle(nn.functional.silu(hidden))
        velocity: Tensor = self.leave(hidden)
        return velocity.permute(0, 3, 1, 2)


def make_denoiser(text_width: int) -> TinyDenoiser:
    """Return a denoiser with the same weights each time; the caller's random state stays unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyDenoiser(text_width)


def _last(latents: Tensor) -> Tensor:
    """Move channels last: [B, C, h, w] to [B, h, w, C]."""
    return latents.permute(0, 2, 3, 1)
