"""Finds a model and recognises its weights, before data is read and weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from difftrain.model.flavour_match import Flavours, Recognised, asked_name, check_files, is_here
from difftrain.planning.model_plan import ModelPlan
from difftrain.types import ModelLocation


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model whose files exist and belong to the flavour to train."""

    location: ModelLocation
    recognised: Recognised


def find_model(plan: ModelPlan) -> FoundModel:
    """Locate the model of a run and compare it with the run's flavour.

    Raises:
        ModelError: If it cannot be found or reached, or is another model than the flavour's.
    """
    flavours = plan.plugins.registry.flavours(plan.family.name)
    config = plan.config
    name = _asked(config.pretrained_model_name_or_path, flavours)
    denoiser = _asked(config.pretrained_transformer_model_name_or_path, flavours)
    location = (
        plan.family.locate(name, plan.flavour)
        if denoiser is None
        else plan.family.locate_with_denoiser(name, denoiser, plan.flavour)
    )
    recognised = check_files(location, plan.flavour, flavours, allowed=config.allow_other_weights)
    return FoundModel(location=location, recognised=recognised)


def _asked(name: str | None, flavours: Flavours) -> str | None:
    """Return a name as the family is asked for it: local ones as written, others in the hub's spelling."""
    return name if name is None or is_here(name) else asked_name(name, flavours)
