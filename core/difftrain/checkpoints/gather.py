"""The first half of saving, for every process: what is trained, put together in the main process.

Where nothing is sharded the processes do not wait for each other, so that one which ends alone can still save.
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
    """The tensors of a checkpoint, whole. Weights are on the CPU, by the names of the adapter's state."""

    weights: Mapping[str, Tensor]
    """As they are trained on: what a run goes on from."""
    exported: Mapping[str, Tensor]
    """As they are to be used; other ones only with an optimizer that arrives at others than it trains."""
    optimizer: Mapping[str, Any]
    """What :func:`~difftrain.steps.optimizer_state.write_optimizer` writes."""


def gather_state(state: TrainingState) -> GatheredState | None:
    """All that is written by :func:`~difftrain.checkpoints.checkpoint_files.write_checkpoint`; None but in the main
    process.
    """
    weights = gather_weights(state)
    exported = gather_exported(state) if state.evaluates_others else weights
    optimizer = gather_optimizer_of(state)
    if not state.accelerator.is_main_process:
        return None
    return GatheredState(weights=weights, exported=exported, optimizer=optimizer)


def gather_exported(state: TrainingState) -> dict[str, Tensor]:
    """The weights that are to be used, as :func:`gather_weights` gives those that are trained on."""
    with state.evaluating():
        return gather_weights(state)


def gather_weights(state: TrainingState) -> dict[str, Tensor]:
    """Copies of the trained weights as they are now; nothing but in the main process."""
    keep = state.accelerator.is_main_process
    return {name: tensor.to("cpu", copy=True) for name, tensor in _whole_weights(state) if keep}


def gather_optimizer_of(state: TrainingState) -> dict[str, Any]:
    """The optimizer's state; without its sharded tensors but in the main process."""
    keep = state.accelerator.is_main_process
    return gather_optimizer(state.optimizer, state.named_trained, state.built_with, keep=keep)


def not_finite_weights(state: TrainingState) -> list[str]:
    """Names of the trained weights that are NaN or infinite; every process gets the same ones."""
    return [name for name, tensor in _whole_weights(state) if not tensor.isfinite().all()]


def holds_parts(state: TrainingState) -> bool:
    """Whether each process has only a part of what is trained, so that none can save alone."""
    return any(is_sharded(parameter) for parameter in state.trained)


def _whole_weights(state: TrainingState) -> Iterator[tuple[str, Tensor]]:
    """One after another, so that no device has to hold more than one; all processes must go through all of them."""
    for name, tensor in state.plan.adapter.state(state.bare_denoiser).items():
        yield name, whole(tensor)
