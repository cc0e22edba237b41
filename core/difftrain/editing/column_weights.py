"""Puts the weights of a column of results into the loaded model: an adapter's, or a whole model's. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from difftrain.editing.plan_edit import EditPlan, Variant
from difftrain.errors import CheckpointError
from difftrain.types import ModelLocation


class ColumnWeights:
    """The weights of a model that draws column after column."""

    def __init__(self, plan: EditPlan, denoiser: nn.Module, location: ModelLocation) -> None:
        """Begin with the base model, and with an adapter that has not been trained.

        Args:
            denoiser: As :func:`~difftrain.training.adapted_model.load_adapted` gives it.
        """
        self._plan, self._denoiser, self._location = plan, denoiser, location
        self._loaded: int | None = None
        """Place of the adapter that the model has."""

    @contextmanager
    def of(self, variant: Variant) -> Iterator[None]:
        """Inside this context the model draws a column."""
        if self._plan.model.adapter.trains_base:
            self._mix(variant)
            yield
            return
        if variant.weights is not None and variant.weights != self._loaded:
            self._plan.model.adapter.load_state(self._denoiser, self._read(variant.weights))
            self._loaded = variant.weights
        if variant.strength == 1:
            yield
            return
        with self._plan.model.adapter.at_strength(self._denoiser, variant.strength):
            yield

    def _mix(self, variant: Variant) -> None:
        """Give every weight its place between base, strength 0, and trained, strength 1.

        Both are read one tensor at a time, so that the memory holds the model once.
        """
        adapter, family = self._plan.model.adapter, self._plan.model.family
        trained = {} if variant.weights is None else self._read(variant.weights)
        if variant.strength == 1:
            adapter.load_state(self._denoiser, trained)
            return
        own = adapter.state(self._denoiser)
        with torch.no_grad():
            for name, base in family.denoiser_weights(self._location):
                own[name].copy_(_between(base, trained[name], variant.strength) if trained else base)

    def _read(self, place: int) -> Mapping[str, Tensor]:
        return read_weights_of(self._plan, self._plan.adapter.weights[place].path)


def read_weights_of(plan: EditPlan, path: Path) -> Mapping[str, Tensor]:
    """Return the trained weights in a file or folder.

    Raises:
        CheckpointError: If they cannot be read.
    """
    try:
        return plan.model.adapter.read(path, plan.model.family.lora_prefix)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _between(base: Tensor, trained: Tensor, strength: float) -> Tensor:
    return torch.lerp(base.float(), trained.float(), strength) if base.is_floating_point() else trained
