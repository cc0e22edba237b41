"""Gradient checkpointing by blocks, for models that do not bring their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from difftrain.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def recompute_blocks(blocks: Sequence[nn.Module], family: str) -> None:
    """Recompute the activations of each block in the backward pass instead of keeping them.

    Raises:
        ModelError: If there are no blocks.
    """
    if not blocks:
        raise ModelError(
            f"gradient_checkpointing: model family {family!r} names no blocks that could be recomputed\n"
            'hint: set "gradient_checkpointing": false'
        )
    for block in blocks:
        _recompute(block)


def _recompute(block: nn.Module) -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    forward = block.forward

    def recomputed(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    block.forward = recomputed
