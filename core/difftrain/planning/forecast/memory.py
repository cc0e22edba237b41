"""Bytes that a training step has allocated at its peak, as torch counts them."""

from __future__ import annotations

from dataclasses import dataclass

from difftrain.planning.forecast.cards import GIB, Card
from difftrain.planning.forecast.modes import ROOM, Mode
from difftrain.types import ModelWork, Work

COMPILED_KEEPS = 0.80
"""Share of a block's activations that a compiled one keeps: it makes the others again from their neighbours.

Source: docs/log.md, 2026-11-26: 59.1 GiB (bf16), 48.3 (fp8) and 63.0 (fp8, all linear layers) with nothing recomputed.
"""
IN_FLIGHT = 2.6
"""Largest tensors that the backward pass holds at once: gradients on their way, and copies.

Source: docs/benchmarks.md: 15.7 and 26.8 GiB with everything recomputed, int8-quanto and bf16.
"""
CONTEXT = 0.6 * GIB
"""What CUDA, its libraries and their workspaces take before torch allocates anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedBytes:
    """Bytes for each trained weight, which stay for the whole run."""

    weight: float
    optimizer: float
    """State that the optimizer keeps, as measured on a small weight."""
    gradients_stay: bool = False
    """Whether a step has several micro-batches, so that gradients are there during the forward of the next one."""

    @property
    def gradient(self) -> float:
        """A gradient has the number format of its weight."""
        return self.weight


def peak_bytes(work: ModelWork, mode: Mode, trained: TrainedBytes) -> float:
    """Return the bytes at the beginning of the backward pass, or at its end if that is more.

    weights + trained weights with their optimizer state + activations of the blocks that keep them + inputs (and, if
    compiled, outputs of attention) of those that recompute + one recomputed block + tensors in flight. Gradients of
    trained weights come as activations go, unless those of an earlier micro-batch are there already.
    """
    frozen = work.linear_weights * mode.weight_bytes + work.other_bytes
    adapter = work.trained * (trained.weight + trained.optimizer)
    count = len(work.blocks)
    recomputing, keeping = work.blocks[: count - mode.kept], work.blocks[count - mode.kept :]
    kept = sum(_kept(block, mode) for block in (*keeping, work.rest))
    left = sum(block.input_bytes + (block.attention_bytes if mode.compiled else 0) for block in recomputing)
    one_block = max((_kept(block, mode) for block in recomputing), default=0.0)
    gradients = work.trained * trained.gradient
    changing = kept + left + gradients if trained.gradients_stay else max(kept + left, gradients)
    return frozen + adapter + changing + one_block + IN_FLIGHT * work.forward.largest_bytes


def most_kept(work: ModelWork, mode: Mode, trained: TrainedBytes, card: Card) -> int | None:
    """Return how many blocks can keep their activations on the card; None if it does not fit with none."""
    for kept in range(len(work.blocks), -1, -1):
        if fits(peak_bytes(work, mode.keeping(kept), trained), card):
            return kept
    return None


def available(card: Card) -> float:
    """Return the bytes that a run can have on a card that nothing else uses."""
    return card.memory - CONTEXT


def fits(peak: float, card: Card) -> bool:
    """Return whether a step with this peak runs without risk."""
    return peak <= ROOM * available(card)


def _kept(block: Work, mode: Mode) -> float:
    return block.kept_bytes * (COMPILED_KEEPS if mode.compiled else 1.0)
