"""What validations use of the data, and every caption that a run encodes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from difftrain.data.caching.sample_caches import SampleCaches, TextItem
from difftrain.data.samples.prepare_samples import PairedData
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.run_length import trained_as_shown
from difftrain.types import Sample
from difftrain.validation.scenes import Scene, choose_scenes, spread

FIXED_LOSS_SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Validated:
    """What validations use; both are empty if there are none."""

    measured: Sequence[Sample] = ()
    """Samples for the loss that validations measure; only these need latents."""
    scenes: Sequence[Scene] = ()
    """Images that validations draw, from the files."""


def validated(plan: RunPlan, paired: PairedData) -> Validated:
    """Return what the validations of a run use: held-out samples, or those trained on if there are none."""
    config = plan.config
    if not (config.validation_steps or config.validation_on_startup):
        return Validated()
    samples = paired.held_out or trained_as_shown(plan, paired.samples)
    scenes = choose_scenes(samples, config, plan.prompts, plan.family.pixel_multiple)
    return Validated(measured=spread(samples, FIXED_LOSS_SAMPLES), scenes=scenes)


def texts_of_run(
    plan: RunPlan,
    caches: SampleCaches,
    trained: Sequence[Sample],
    measured: Sequence[Sample],
    scenes: Sequence[Scene],
) -> Iterator[TextItem]:
    """Yield every caption that training and validations ask for."""
    config = plan.config
    yield from caches.text_items(
        trained,
        caption_dropout=config.caption_dropout_probability > 0,
        reference_dropout=config.reference_dropout_probability > 0,
    )
    yield from caches.text_items(measured, caption_dropout=False, reference_dropout=False)
    for scene in scenes:
        for prompt in (scene.prompt, config.validation_negative_prompt):
            yield scene.text(prompt, plan.flavour.pipeline_references)
