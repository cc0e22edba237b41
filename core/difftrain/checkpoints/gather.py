"""The first half of saving, for every process: collect the trained state in the main process.

Where nothing is sharded the processes do not wait for each other, so one that ends alone can still save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from difftrain.steps.optimizer_state import gather_optimizer
from difftrain.steps.sharding import is_sharded, whole

if TYPE_CHECKING:
    from difftrain.steps.training_state import TrainingState


@dataclass(frozen=True, kw_only=True)
class GatheredState:
    """The unsharded tensors of a checkpoint. Weights are on the CPU, named as in the adapter's state."""

    weights: Mapping[str, Tensor]
    """The weights that training continues from."""
    exported: Mapping[str, Tensor]
    """The weights to use; they differ from ``weights`` only if the optimizer evaluates at others than it trains."""
    optimizer: Mapping[str, Any]
    """The state as :func:`~difftrain.steps.optimizer_state.write_optimizer` writes it."""


def gather_state(state: TrainingState) -> GatheredState | None:
    """Return the state for :func:`~difftrain.checkpoints.checkpoint_files.write_checkpoint`; None except in the main
    process.
    """
    weights = gather_weights(state)
    exported = gather_exported(state) if state.evaluates_others else weights
    optimizer = gather_optimizer_of(state)
    if not state.accelerator.is_main_process:
        return None
    return GatheredState(weights=weights, exported=exported, optimizer=optimizer)


def gather_exported(state: TrainingState) -> dict[str, Tensor]:
    """Return the weights to use; :func:`gather_weights` returns those that training continues from."""
    with state.evaluating():
        return gather_weights(state)


def gather_weights(state: TrainingState) -> dict[str, Tensor]:
    """Return copies of the current trained weights; empty outside the main process."""
    keep = state.accelerator.is_main_process
    return {name: tensor.to("cpu", copy=True) for name, tensor in _whole_weights(state) if keep}


def gather_optimizer_of(state: TrainingState) -> dict[str, Any]:
    """Return the optimizer's state; outside the main process without its sharded tensors."""
    keep = state.accelerator.is_main_process
    return gather_optimizer(state.optimizer, state.named_trained, state.built_with, keep=keep)


def not_finite_weights(state: TrainingState) -> list[str]:
    """Return the names of trained weights that are NaN or infinite; the same in every process."""
    return [name for name, tensor in _whole_weights(state) if not tensor.isfinite().all()]


def holds_parts(state: TrainingState) -> bool:
    """Return whether each process holds only a part of the trained state, so that none can save alone."""
    return any(is_sharded(parameter) for parameter in state.trained)


def _whole_weights(state: TrainingState) -> Iterator[tuple[str, Tensor]]:
    """Yield one weight at a time, so that no device holds two; every process must exhaust the iterator."""
    for name, tensor in state.plan.adapter.state(state.bare_denoiser).items():
        yield name, whole(tensor)
