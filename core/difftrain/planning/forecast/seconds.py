"""Seconds of one forward and backward: products, attention, what moves through memory, or the host if it is slower.

Each share of a card's peak was measured in whole steps on an H100 and is taken as the same for other cards.
"""

from __future__ import annotations

from difftrain.planning.forecast.cards import Card
from difftrain.planning.forecast.modes import Mode
from difftrain.types import ModelWork, Work

PRODUCTS = {"float32": 0.8, "bfloat16": 0.68, "int8": 0.53, "fp8": 0.74}
"""Share of the peak rate that products with frozen weights reach in a step.

Source: docs/log.md, 2026-11-26: fp8 products take 154 ms of a step; bf16 follows from 0.823 s of the same model. int8:
2026-11-27, the kernel alone, 1,050 to 1,150 TFLOP/s. float32 is not measured.
"""
ATTENTION = {"cudnn": (0.60, 0.52), "flash": (0.35, 0.305), "flash-attn-4": (0.655, 0.597)}
"""Share of the peak rate of bfloat16 that attention reaches, forward and backward.

Source: one H100, 24 heads x 128, 8,704 tokens: cuDNN 594 and 512 TFLOP/s, flash 345 and 303,
FlashAttention-4 648 and 590.
"""
ATTENTION_FLOAT32 = (0.4, 0.3)
"""The same in float32, of float32's rate; not measured."""
ATTENTION_BACKWARD = 2.5
"""FLOP of attention's backward pass for one of its forward: five products in place of two."""
BANDWIDTH = 0.68
"""Share of the bandwidth that operations between products reach. Source: 1.368 s (bf16, uncompiled, flash)."""
BACKWARD = 1.2
"""Bytes that the backward pass of those operations moves for one of the forward's. Source: the same."""
COMPILED_MOVES = 0.20
"""Share of those bytes that is left when blocks are compiled. Source: 1.368 and 0.823 s, uncompiled and compiled."""
QUANTISED_BYTES = 1.5
"""Bytes moved for each number that an 8-bit product takes in or gives out, compiled.

Source: 0.646 s (fp8) beside 0.808 (bf16), both recorded.
"""
QUANTISED_UNCOMPILED = 17.0
"""The same, operation by operation. Source: 1.42 s for an uncompiled fp8 step."""
UNPACKED_BYTES = 12.6
"""Bytes moved for each weight that is turned into the forward's number format before a product.

Source: 2.037 and 1.874 s, int8-quanto and bf16, everything recomputed.
"""
RECOMPUTED = 0.56
"""Share of a compiled block's forward, without attention, that recomputing it takes: what the gradients need.

Source: 0.681 and 0.763 s, fp8, nothing and everything recomputed.
"""
HOST = 30e-6
"""Seconds in which the host starts one operation, uncompiled. Source: 512 + 512 px, int8-quanto, 0.66 to 0.92 s."""
HOST_COMPILED = 48e-6
"""Seconds of the host for each operation of the uncompiled forward, forward and backward together.

Source: 512 + 512 px, fp8, 0.243 s, of which 0.144 s on the card.
"""
GAPS = 1.03
"""Time of a step in which the card waits, even if the host is faster. Source: 0.681 s, of which 0.658 on the card."""
TAILS = 6e-6
"""Seconds of a recorded step for each operation of the uncompiled forward: kernels begin and end with little of the
card at work. Source: 512 + 512 px, fp8, recorded as a CUDA graph, 0.157 s."""


def step_seconds(work: ModelWork, mode: Mode, card: Card) -> float:
    """Return the seconds of one forward and backward, with the optimizer's step, which takes a few milliseconds."""
    count = len(work.blocks)
    recomputing = sum(work.blocks[: count - mode.kept], Work())
    on_card = (
        _forward(work.forward, mode, card) + _backward(work.forward, mode, card) + _recomputed(recomputing, mode, card)
    )
    if mode.recorded:
        return on_card + TAILS * work.forward.operations
    return max(GAPS * on_card, _host(work.forward, recomputing, mode))


def _forward(work: Work, mode: Mode, card: Card) -> float:
    return _attention(work, mode, card)[0] + _between(work, mode, card) + _products(work, mode, card)


def _backward(work: Work, mode: Mode, card: Card) -> float:
    """Gradients of inputs for frozen weights; for trained ones those of the weights too, another product."""
    between = BACKWARD * _between(work, mode, card) + _trained_products(work, mode, card)
    return _attention(work, mode, card)[1] + between + _products(work, mode, card)


def _recomputed(work: Work, mode: Mode, card: Card) -> float:
    """A compiled block keeps the result of attention, and makes only what its gradients need."""
    if mode.compiled:
        return RECOMPUTED * (_between(work, mode, card) + _products(work, mode, card))
    return _forward(work, mode, card)


def _products(work: Work, mode: Mode, card: Card) -> float:
    """Return the seconds of all products of one forward, with what 8-bit ones need to convert."""
    peak = card.rate(mode.products)
    assert peak is not None, f"{card.name} has no products in {mode.products}"
    bandwidth = BANDWIDTH * card.bandwidth
    linear = max(
        work.linear_flops / (PRODUCTS[mode.products] * peak), work.linear_weights * mode.weight_bytes / bandwidth
    )
    converted = 0.0
    if mode.products != mode.compute:
        converted = (QUANTISED_BYTES if mode.compiled else QUANTISED_UNCOMPILED) * work.linear_rows
    if mode.unpacks:
        converted = UNPACKED_BYTES * work.linear_weights
    return linear + converted / bandwidth + _trained_products(work, mode, card)


def _trained_products(work: Work, mode: Mode, card: Card) -> float:
    peak = card.rate(mode.compute)
    assert peak is not None, "every card has these products"
    return max(work.other_flops / (PRODUCTS[mode.compute] * peak), work.other_bytes / (BANDWIDTH * card.bandwidth))


def _attention(work: Work, mode: Mode, card: Card) -> tuple[float, float]:
    """Return the seconds forward and backward."""
    in_float32 = mode.compute == "float32"
    forward, backward = ATTENTION_FLOAT32 if in_float32 else ATTENTION[mode.attention]
    peak = card.float32 if in_float32 else card.bfloat16
    return work.attention_flops / (forward * peak), ATTENTION_BACKWARD * work.attention_flops / (backward * peak)


def _between(work: Work, mode: Mode, card: Card) -> float:
    """Return the seconds of what is no product, forward."""
    return work.moved_bytes * (COMPILED_MOVES if mode.compiled else 1.0) / (BANDWIDTH * card.bandwidth)


def _host(work: Work, recomputing: Work, mode: Mode) -> float:
    """Return the seconds in which the host starts all operations; a backward pass has two for each of the forward."""
    if mode.compiled:
        return HOST_COMPILED * (work.operations + recomputing.operations / 6)
    return HOST * (3 * work.operations + recomputing.operations)
