"""Tensors of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TextEmbeds = Mapping[str, "Tensor"]
"""Embeddings of one caption by a family's text encoders; only the family knows the names and shapes."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Cached tensors of B samples of one shape, ready for a step."""

    latents: Tensor
    """Normalised target latents, [B, C, h, w] or of whatever rank the family's encoder gives; float32."""
    references: Sequence[Tensor]
    """One tensor per reference slot, each [B, C, h', w']; all samples of a batch have the same number."""
    text: TextEmbeds
    """Batched by the family."""
    keys: tuple[str, ...] = ()
    """``dataset_id/key`` of each sample, for messages and metrics."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that the family and the loss asked for, by name, each [B, ...]; floating point ones are float32."""
    noise_offsets: Tensor | None = None
    """[B], float32: added to the logits of the noise levels before the shift; None is 0."""
    regularises: bool = False
    """Whether the target is the prediction of the model without its adapter."""
    strength: float = 1.0
    """Factor on the adapter's effect while the batch is trained on."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Copies on ``device``; floating point tensors of the text and references become ``dtype``."""

        def move(tensor: Tensor) -> Tensor:
            cast = dtype if tensor.is_floating_point() else None
            return tensor.to(device=device, dtype=cast, non_blocking=True)

        return Batch(
            latents=self.latents.to(device=device, non_blocking=True),
            references=[move(reference) for reference in self.references],
            text={name: move(tensor) for name, tensor in self.text.items()},
            keys=self.keys,
            extras={name: tensor.to(device=device, non_blocking=True) for name, tensor in self.extras.items()},
            noise_offsets=None,  # the noise levels are drawn by now
            regularises=self.regularises,
            strength=self.strength,
        )


@dataclass(frozen=True, kw_only=True)
class NoisyBatch:
    """Noisy latents of a batch and the prediction's target, as the family's noise process makes them."""

    noisy: Tensor
    """[B, C, h, w] or of whatever rank the latents have, float32."""
    sigma: Tensor
    """[B], noise level after the shift, float32; 0 is clean, 1 is noise."""
    timestep: Tensor
    """[B], the noise level in the form that the model takes: sigma itself for flow matching, whole steps for discrete
    processes."""
    target: Tensor
    """The prediction that the model should give, shaped like ``noisy``, float32: the velocity for flow matching."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """Shape of one attention call in a forward, for choosing a kernel."""

    batch: int
    heads: int
    queries: int
    """Tokens that attend."""
    keys: int
    """Tokens that are attended to."""
    head_dim: int
    """Features of a token in one head."""
    masked: bool = False
    """Whether an attention mask is given."""
