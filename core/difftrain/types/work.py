"""What a model does in one step, counted: the input of a forecast of memory and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difftrain.types.batches import Batch
from difftrain.types.sizes import Size

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ModelOutline:
    """A model known by its shapes: no weight is loaded, and nothing was downloaded or written for it."""

    denoiser: nn.Module
    """As :meth:`~difftrain.contracts.ModelFamily.empty_denoiser` gives it."""
    example_batch: Callable[[Size, Sequence[Size], int], Batch]
    """Makes a batch on the meta device from the sizes of target and references, in pixels, and the number of samples.
    Its shapes are those of a run; :func:`difftrain.testing.check_family` compares them."""
    note: str | None = None
    """What was assumed about the model, for the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One forward of a part of the model over a batch, as written: operation by operation, not compiled."""

    linear_flops: float = 0.0
    """Products with frozen weights that a quantizer converts; a multiplication and an addition are two."""
    linear_weights: float = 0.0
    """Numbers in those weights."""
    linear_rows: float = 0.0
    """Numbers that enter those products and leave them: what a mode that quantises activations converts."""
    other_flops: float = 0.0
    """All other products: those of the adapter, and of layers that stay in full precision."""
    other_bytes: float = 0.0
    """Read and written by those: low-rank products wait for memory, not for arithmetic."""
    attention_flops: float = 0.0
    moved_bytes: float = 0.0
    """Read and written by all operations but products and attention."""
    operations: int = 0
    """Kernels that the device is given."""
    kept_bytes: float = 0.0
    """Activations that autograd keeps for the backward pass; weights do not count."""
    input_bytes: float = 0.0
    """Inputs that no other part has: what stays of a part that recomputes all."""
    attention_bytes: float = 0.0
    """Outputs of attention with its log-sums, a part of the kept bytes."""
    largest_bytes: float = 0.0
    """The largest tensor that is made."""

    def __add__(self, other: Work) -> Work:
        summed = {name: getattr(self, name) + getattr(other, name) for name in _SUMMED}
        return Work(**summed, largest_bytes=max(self.largest_bytes, other.largest_bytes))


_SUMMED = tuple(name for name in Work.__annotations__ if name != "largest_bytes")


@dataclass(frozen=True, kw_only=True)
class ModelWork:
    """One forward of a model with its adapter over one batch, and the model's weights."""

    blocks: Sequence[Work]
    """In the order of the forward."""
    rest: Work
    """What is outside of the blocks."""
    linear_weights: int
    """Numbers in the frozen weights that a quantizer converts."""
    other_bytes: int
    """All other frozen weights and buffers, in the number format of the run."""
    trained: int
    """Trained weights."""
    tokens: Mapping[str, int]
    """Of one sample, by group."""
    samples: int

    @property
    def forward(self) -> Work:
        """Return the work of the whole forward."""
        return sum(self.blocks, self.rest)
