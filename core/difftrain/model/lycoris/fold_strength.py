"""Puts strengths into the factors of a change, so that every program that loads a file applies the same change.

The library itself applies alpha / rank once in a forward, and twice where it merges LoKr or LoHa into the weights
(tried with 4.1.3); with alpha = rank both are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SCALED = ("lokr_w1", "lokr_w1_a", "hada_w1_a", "lora_up.weight", "diff", "diff_b")
"""One factor of each kind of change, and both parts of a full one: those that carry the strength."""
_RANKED = ("lokr_w2_a", "lokr_w1_a", "hada_w1_a", "lora_up.weight")
"""Factors whose last dimension is the rank; a change without any has no alpha that counts."""


def folded(weights: Mapping[str, Tensor], multiplier: float) -> dict[str, Tensor]:
    """Return weights with alpha = rank that have the same effect at strength 1 as the given ones at ``multiplier``.

    Args:
        weights: By ``LAYER.FACTOR``, with the alphas.
    """
    import torch

    factors: dict[str, float] = {}
    alphas: dict[str, Tensor] = {}
    for name in weights:
        layer = name.partition(".")[0]
        ranks = [weights[f"{layer}.{key}"].shape[-1] for key in _RANKED if f"{layer}.{key}" in weights]
        alpha = weights.get(f"{layer}.alpha")
        factors[layer] = multiplier * (float(alpha) / ranks[0] if ranks and alpha is not None else 1)
        if ranks and alpha is not None:
            alphas[f"{layer}.alpha"] = torch.tensor(float(ranks[0]))
    return {name: alphas.get(name, tensor) for name, tensor in times(weights, factors).items()}


def times(weights: Mapping[str, Tensor], factors: Mapping[str, float]) -> dict[str, Tensor]:
    """Return weights whose effect is that of the given ones times a factor for each layer, 1 if it has none."""
    found = {}
    for name, tensor in weights.items():
        layer, _, key = name.partition(".")
        factor = factors.get(layer, 1)
        # float32, because the factor may not be exact in the trained dtype
        found[name] = tensor.float() * factor if key in _SCALED and factor != 1 else tensor
    return found
