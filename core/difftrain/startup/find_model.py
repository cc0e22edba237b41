"""Finds a model and recognises its weights, before data is read and weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from difftrain.model.flavour_match import Recognised, asked_name, check_files, is_here
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
    name = plan.config.pretrained_model_name_or_path
    if name is not None and not is_here(name):
        name = asked_name(name, flavours)
    location = plan.family.locate(name, plan.flavour)
    recognised = check_files(location, plan.flavour, flavours, allowed=plan.config.allow_other_weights)
    return FoundModel(location=location, recognised=recognised)
