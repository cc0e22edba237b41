"""What a forecast counts about a run's model, with torch but without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from difftrain.contracts import OptimizerFactory
from difftrain.errors import ModelError
from difftrain.model.counting.denoiser_work import count_work
from difftrain.planning.forecast.cards import Card, card_of_device
from difftrain.planning.forecast.memory import TrainedBytes
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.batch_shape import LargestBatch
from difftrain.startup.data_forecast import Shape
from difftrain.startup.encoded_form import compute_dtype
from difftrain.steps.optimizer_bytes import optimizer_bytes
from difftrain.types import ModelWork

MOST_SHAPES = 200
"""Shapes whose tokens are counted; those with most samples."""


@dataclass(frozen=True, kw_only=True)
class OutlinedRun:
    """A model with its adapter and optimizer, counted."""

    work: ModelWork
    trained: TrainedBytes
    note: str | None
    """What was assumed about the model."""
    lengths: Mapping[Shape, Mapping[str, int]]
    """Tokens of one sample by group, for each shape of the data."""


def outline_run(plan: ModelPlan, optimizer: OptimizerFactory, shape: LargestBatch) -> OutlinedRun:
    """Count one forward of the run's model over its largest batch.

    Raises:
        ModelError: If the family cannot describe the model, or its folder is another model.
        ConfigError: If an adapter target names no module.
    """
    name, denoiser = plan.config.pretrained_model_name_or_path, plan.config.pretrained_transformer_model_name_or_path
    outline = (
        plan.family.outline(name, plan.flavour)
        if denoiser is None
        else plan.family.outline_with_denoiser(name, denoiser, plan.flavour)
    )
    if outline is None:
        raise ModelError(
            f"model family {plan.family.name!r} cannot describe this model without loading it: there is no forecast\n"
            "hint: `difftrain check` checks everything else; its author can add ModelFamily.outline()"
        )
    dtype: torch.dtype = getattr(torch, compute_dtype(plan.config))
    low = optimizer.parameter_dtype == "bfloat16" and dtype == torch.bfloat16
    adapter_dtype = torch.bfloat16 if low else torch.float32
    work = count_work(
        plan.family,
        plan.flavour,
        plan.adapter,
        outline,
        target=shape.target,
        references=shape.references,
        samples=shape.samples,
        dtype=dtype,
        adapter_dtype=adapter_dtype,
    )
    trained = TrainedBytes(
        weight=adapter_dtype.itemsize,
        optimizer=optimizer_bytes(optimizer, adapter_dtype),
        gradients_stay=plan.config.gradient_accumulation_steps > 1,
    )
    counted = shape.data.shapes[:MOST_SHAPES] if shape.data else ()
    lengths = {one: plan.family.tokens(outline.example_batch(*one, 1)) for one, _ in counted}
    return OutlinedRun(work=work, trained=trained, note=outline.note, lengths=lengths)


def own_card() -> tuple[Card | None, str | None]:
    """Return this machine's card, and a note if it has one that the table of cards does not know."""
    if not torch.cuda.is_available():
        return None, None
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    card = card_of_device(name, capability, torch.cuda.get_device_properties(0).total_memory)
    return card, None if card else f"this machine's {name} is not in the table of cards, so it has no row"
