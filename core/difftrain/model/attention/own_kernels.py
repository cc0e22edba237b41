"""The attention kernels that torch does not choose itself, and the place where models get one of them.

Models look ``scaled_dot_product_attention`` up in its module each time they call it; there is no other place that all
of them share (docs/adr/007-attention-for-all-models.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from difftrain.model.attention import cudnn_attention, flash4_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

torchs_own_attention = functional.scaled_dot_product_attention


@dataclass(frozen=True, kw_only=True)
class OwnKernel:
    """A kernel behind an op of our own."""

    run: Attention
    """Of queries, keys and values, each [B, heads, S, head_dim]."""
    takes: Callable[[Tensor], bool]
    """Whether it takes such a query, key or value."""
    dense_heads: bool
    """Whether it wants each head's rows one after the other; otherwise each row's heads, as models make them."""


OWN_KERNELS: Mapping[str, OwnKernel] = {
    # looked up when called, so that a test can put a kernel of the CPU in their places
    "cudnn": OwnKernel(
        run=lambda query, key, value: cudnn_attention.cudnn_attention(query, key, value),
        takes=lambda tensor: cudnn_attention.takes(tensor),
        dense_heads=True,
    ),
    "flash-attn-4": OwnKernel(
        run=lambda query, key, value: flash4_attention.flash4_attention(query, key, value),
        takes=lambda tensor: flash4_attention.takes(tensor),
        dense_heads=False,
    ),
}

_FORWARDS = (
    torch.ops.difftrain.cudnn_attention.default,
    torch.ops.difftrain.flash4_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
)


def is_attention(operation: object) -> bool:
    """Whether an operation that a traced forward is made of is an attention kernel."""
    return operation in _FORWARDS


def route_models_to(kernel: str | None) -> None:
    """Let models that call torch's ``scaled_dot_product_attention`` get a kernel of ours, in this whole process.

    Args:
        kernel: One of :data:`OWN_KERNELS`; None gives torch's own function back.
    """
    functional.scaled_dot_product_attention = torchs_own_attention if kernel is None else _routed(kernel)


def routed_to() -> str | None:
    """Return the kernel of ours that models get now."""
    return getattr(functional.scaled_dot_product_attention, "difftrain_kernel", None)


@functools.cache  # one function for each: torch.compile would compile anew for another
def _routed(kernel: str) -> Callable[..., Tensor]:
    own = OWN_KERNELS[kernel]

    def attention_of_models(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Stand in for torch's function in models that call it: plain calls go to our op, all others to torch."""
        is_plain = attn_mask is None and dropout_p == 0.0 and not is_causal and scale is None and not enable_gqa
        if is_plain and own.takes(query) and own.takes(key) and own.takes(value):
            return own.run(query, key, value)
        return torchs_own_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    attention_of_models.difftrain_kernel = kernel  # type: ignore[attr-defined]
    return attention_of_models
