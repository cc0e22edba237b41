"""What a sampler is asked for, with the run's options of validation: for validations, and for edits afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftrain.config.run_options import SEED_LIMIT
from difftrain.types import Size, TextEmbeds, ValidationRequest

if TYPE_CHECKING:
    from PIL import Image

    from difftrain.planning.model_plan import ModelPlan


def guidance_of(plan: ModelPlan) -> tuple[float, float]:
    """Return the guidance and the true classifier-free guidance: the config's, or else the flavour's."""
    guidance, real = plan.config.validation_guidance, plan.config.validation_guidance_real
    return (
        plan.flavour.default_guidance if guidance is None else guidance,
        plan.flavour.default_guidance_real if real is None else real,
    )


def seed_of(plan: ModelPlan, number: int) -> int:
    """Return the seed of an image's n-th drawing; ``number`` counts from 1."""
    return int((plan.config.validation_seed + number - 1) % SEED_LIMIT)


def request_of(
    plan: ModelPlan,
    *,
    text: TextEmbeds,
    negative_text: TextEmbeds | None,
    references: tuple[Image.Image, ...],
    size: Size,
    seed_number: int,
) -> ValidationRequest:
    """Return the request for one image.

    Args:
        negative_text: None if true guidance is off.
        seed_number: Counts from 1.
    """
    guidance, real = guidance_of(plan)
    return ValidationRequest(
        text=text,
        negative_text=negative_text,
        references=references,
        width=size[0],
        height=size[1],
        steps=plan.config.validation_num_inference_steps,
        guidance=guidance,
        guidance_real=real,
        seed=seed_of(plan, seed_number),
    )
