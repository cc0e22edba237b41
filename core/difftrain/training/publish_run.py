"""What a run does for others when it ends: the model card. And the start of its uploads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from difftrain.checkpoints.checkpoint_files import facts_of_state
from difftrain.data.packed.sample_table import SampleTable
from difftrain.errors import DifftrainError, ModelError
from difftrain.model.low_rank.lora_file import ADAPTER_FILE
from difftrain.output.metrics_file import measured_alike
from difftrain.output.output_dir import CARD_FILE, METRICS_FILE, newest_sheet
from difftrain.planning.run_plan import RunPlan
from difftrain.publishing.card_text import CardImage, CardMaterial
from difftrain.publishing.file_metadata import tensor_names
from difftrain.publishing.hub_account import HubRepository
from difftrain.publishing.hub_uploads import HubUploads
from difftrain.publishing.model_card import copy_images, write_card
from difftrain.publishing.uploaded_files import final_files
from difftrain.startup.prepare_run import PreparedRun
from difftrain.training.assemble import AssembledRun
from difftrain.types import Reporter
from difftrain.validation.drawn_files import file_name
from difftrain.validation.run_summary import describe_losses, describe_psnr


def start_uploads(plan: RunPlan, repository: HubRepository | None, later: str, reporter: Reporter) -> HubUploads | None:
    """Return what uploads during the run; None if it uploads nothing.

    Args:
        later: The command that uploads what this run could not.
    """
    if repository is None:
        return None
    checkpoints = plan.config.push_checkpoints_to_hub
    return HubUploads(repository, plan.config.output_dir, reporter, checkpoints=checkpoints, later=later)


def finish_uploads(uploads: HubUploads, plan: RunPlan) -> None:
    """Upload the finished run, if it asks for that, and wait for every upload."""
    images = plan.config.model_card_images
    files = final_files(plan.config.output_dir, images=images) if plan.config.push_to_hub else {}
    uploads.finish(files, "the model" if plan.adapter.trains_base else "the adapter")


def publish_card(
    assembled: AssembledRun, prepared: PreparedRun, repository: HubRepository | None, reporter: Reporter
) -> None:
    """Write the model card of a finished run; one that cannot be written is no reason to lose the run.

    Args:
        repository: Where the run is uploaded to, if it is.
    """
    output_dir = assembled.state.plan.config.output_dir
    try:
        images, step = _images(assembled)
        written = write_card(
            facts_of_state(assembled.state),
            _material(assembled, prepared, _place(assembled, repository), copy_images(images, output_dir), step),
            output_dir,
        )
    except (DifftrainError, OSError) as error:
        reporter.say(f"warning: the model card is not written: {error}")
        return
    if not written:
        reporter.say(f"note: {output_dir / CARD_FILE} is not difftrain's, and stays as it is: no model card is written")


def measured(assembled: AssembledRun) -> list[str]:
    """Return what the validations of the run measured, including those before a resume that measured the same."""
    validator = assembled.validator
    metrics = assembled.state.plan.config.output_dir / METRICS_FILE
    sentences = []
    losses = measured_alike(metrics, "fixed_loss", validator.samples_identity(assembled.state))
    if losses:
        by_step = {step: line["fixed_loss"] for step, line in losses.items()}
        sentences.append(describe_losses(by_step, count=len(validator.fixed), held_out=validator.held_out))
    scores = measured_alike(metrics, "psnr", validator.images_identity(assembled.state))
    if summary := describe_psnr(scores, held_out=validator.held_out, seeds=validator.seeds):
        sentences.append(summary)
    return sentences


def _material(
    assembled: AssembledRun, prepared: PreparedRun, place: str, images: Sequence[CardImage], step: int | None
) -> CardMaterial:
    plan = assembled.state.plan
    config, flavour = plan.config, plan.flavour
    targets, references = SampleTable.of(prepared.data.samples).bucket_counts()
    guidance = config.validation_guidance
    return CardMaterial(
        place=place,
        pipeline=_pipeline(plan),
        denoiser=_denoiser(assembled),
        edits=flavour.max_references > 0,
        guidance=flavour.default_guidance if guidance is None else guidance,
        inference_steps=config.validation_num_inference_steps,
        target_sizes=targets,
        reference_sizes=references,
        held_out=sum(prepared.data.held_out_counts().values()),
        measured=measured(assembled),
        images=images,
        images_of_step=step,
    )


def _place(assembled: AssembledRun, repository: HubRepository | None) -> str:
    """Return what to load the adapter from: its repository, or else the folder of the card."""
    name = repository.id if repository else assembled.state.plan.config.hub_model_id or ""
    return name if "/" in name else "."


def _pipeline(plan: RunPlan) -> str | None:
    """Return the class of diffusers that loads the adapter; None if none does."""
    file = plan.config.output_dir / ADAPTER_FILE
    is_lora = file.is_file() and all(".lora_" in name for name in tensor_names(file))
    if not is_lora and not plan.adapter.trains_base:
        return None
    try:
        pipeline = plan.flavour.pipeline_class()
    except (ModelError, ImportError):
        return None
    # a flavour may extend the class for its validation; the card's readers have diffusers alone
    return next((cls.__name__ for cls in pipeline.__mro__ if cls.__module__.startswith("diffusers.")), None)


def _denoiser(assembled: AssembledRun) -> tuple[str, str] | None:
    """Return class and folder of a model that was trained as a whole; None for an adapter."""
    plan, denoiser = assembled.state.plan, assembled.state.bare_denoiser
    return (type(denoiser).__name__, plan.family.lora_prefix) if plan.adapter.trains_base else None


def _images(assembled: AssembledRun) -> tuple[dict[Path, str | None], int | None]:
    """Return images of the last complete validation, those of the config's own prompts first, and its step."""
    plan = assembled.state.plan
    sheet = newest_sheet(plan.config.output_dir) if plan.config.model_card_images else None
    if sheet is None:
        return {}, None
    scenes = assembled.validator.scenes
    own = [(scene, scene.prompt) for scene in scenes if scene.target is None]
    others = [(scene, None) for scene in scenes if scene.target is not None]
    paths = {sheet.with_name(f"{file_name(scene.name, 1)}.png"): prompt for scene, prompt in chain(own, others)}
    return {path: prompt for path, prompt in paths.items() if path.is_file()}, int(sheet.parent.name.rpartition("-")[2])
