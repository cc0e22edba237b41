"""From a plan to everything the loop needs, in the order of a run; each heavy part is freed before the next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from difftrain.checkpoints.checkpoint_files import load_checkpoint
from difftrain.checkpoints.resume_state import Resumed, ResumeState, trained_dtype
from difftrain.data.packed.sample_table import one_of_each_set
from difftrain.data.streaming.batch_reader import BatchReader, Reencoder
from difftrain.data.streaming.coming_batches import ComingBatches
from difftrain.data.streaming.epoch import draw_visit
from difftrain.data.streaming.sample_extras import SampleExtras
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.data.streaming.stream import BatchStream
from difftrain.errors import ConfigError
from difftrain.model.attention.choose_kernel import check_attention
from difftrain.model.block_swapping import SwappedBlocks
from difftrain.output.output_dir import VALIDATION_FOLDER
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.encoded_form import model_identity
from difftrain.startup.prepare_run import PreparedRun, every_placed_image
from difftrain.startup.run_length import total_steps
from difftrain.steps.optimizer_state import settings_of
from difftrain.steps.sharding import is_sharded
from difftrain.steps.step import remember_rates
from difftrain.steps.training_state import TrainingState
from difftrain.training.adapted_model import load_adapted
from difftrain.training.fill_caches import fill_caches
from difftrain.training.fitting.room_to_encode import room_to_encode
from difftrain.training.frozen_encoders import Encoders
from difftrain.training.open_stream import open_stream
from difftrain.training.tell_data import say_batches
from difftrain.types import ModelLocation, PlacedImage, Reporter, Sampler, ValidationRequest
from difftrain.validation.scenes import Scene
from difftrain.validation.validator import Validator

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image


@dataclass(kw_only=True)
class AssembledRun:
    """A run that is ready to train."""

    state: TrainingState
    stream: BatchStream
    validator: Validator
    resumed_from: Path | None
    coming: ComingBatches | None
    """Which shapes the batches will have; None where the samples are not known before."""
    resumed_state: ResumeState | None
    """What that checkpoint records about its run."""


def assemble(
    plan: RunPlan, prepared: PreparedRun, resumed: Resumed | None, accelerator: Accelerator, reporter: Reporter
) -> AssembledRun:
    """Fill the caches, load and adapt the denoiser, resume.

    Raises:
        DifftrainError: For anything that the user can fix; filled caches stay.
    """
    config = plan.config
    check_attention(config.attention_mechanism, accelerator.device)  # not when all is encoded
    checkpoint, saved = resumed or (None, None)
    encoders = Encoders(plan, prepared.location, accelerator.device)
    extras = SampleExtras(plan.data, plan.family, plan.loss)
    extras.check([*one_of_each_set(prepared.data.samples), *one_of_each_set(prepared.data.held_out)])
    _say_what_is_not_drawn(prepared.scenes, plan, reporter)
    _fill_caches(plan, prepared, encoders, accelerator, reporter)
    encoding = room_to_encode(_encoded_in_training(prepared), encoders, accelerator.device, reporter)

    state = load_state(plan, prepared.location, accelerator, reporter, to_load=checkpoint is not None)
    state.room_to_encode = encoding
    _check_can_validate(state)
    _check_can_regularise(state)
    if checkpoint and saved:
        load_checkpoint(state, checkpoint, saved)

    reencoder = Reencoder(
        image_encoder=encoders.image, text_encoder=encoders.text, release=encoders.release, in_use=encoders.in_use
    )
    sample_latents = config.vae_cache_sample == "sample"
    reader = BatchReader(
        prepared.caches, plan.family, reencoder, seed=config.seed, sample_latents=sample_latents, extras=extras
    )
    continued = state.position if checkpoint else None
    opened = open_stream(plan, prepared.data.samples, reader, accelerator, continued, state.step)
    if opened.rounds:
        say_batches(opened.rounds, reporter)
    state.position, state.data = opened.position, opened.facts
    state.total_steps = total_steps(plan, opened.steps_left, state.step)
    fixed_rules = EpochRules(seed=config.seed, batch_size=1)
    validator = Validator(
        scenes=list(prepared.scenes),
        fixed=[draw_visit(sample, 0, 0, fixed_rules) for sample in prepared.measured],
        held_out=bool(prepared.data.held_out),
        seeds=config.validation_num_seeds,
        model_identity=model_identity(plan, prepared.location),
        reader=reader,
        sampler=_LazySampler(plan, prepared.location, state, encoders),
        folder=config.output_dir / VALIDATION_FOLDER,
        reporter=reporter,
    )
    return AssembledRun(
        state=state,
        stream=opened.batches,
        validator=validator,
        resumed_from=checkpoint,
        coming=ComingBatches(opened.rounds, reader, state.total_steps - state.step) if opened.rounds else None,
        resumed_state=saved,
    )


def _say_what_is_not_drawn(scenes: Sequence[Scene], plan: RunPlan, reporter: Reporter) -> None:
    taken = plan.flavour.pipeline_references
    most = max((len(scene.references) for scene in scenes), default=0)
    if plan.config.validation_steps and taken is not None and most > taken:
        reporter.say(
            f"note: samples have up to {most} references, but the stock pipeline takes {taken}: "
            "validation images are drawn with only the first, training sees all"
        )


def load_state(
    plan: RunPlan, location: ModelLocation, accelerator: Accelerator, reporter: Reporter, *, to_load: bool = False
) -> TrainingState:
    """Return the denoiser with adapter and optimizer, on the run's device; nothing is trained yet.

    Args:
        to_load: :func:`load_checkpoint` follows.
    """
    device = accelerator.device
    dtype = getattr(torch, trained_dtype(plan))
    swapped = SwappedBlocks(device) if accelerator.num_processes == 1 and not plan.adapter.trains_base else None
    if swapped is None and plan.config.blocks_to_swap not in ("auto", 0):
        raise ConfigError(
            f"blocks_to_swap {plan.config.blocks_to_swap}: blocks are not swapped in a run of several processes, and "
            f'this one has {accelerator.num_processes}\nhint: set blocks_to_swap to "auto", or run one process'
        )
    bare = load_adapted(
        plan, location, device=device, adapter_dtype=dtype, reporter=reporter, swapped=swapped, to_load=to_load
    )
    if plan.quantizer is not None:
        plan.quantizer.before_training(bare, device)
    trained = [named for named in bare.named_parameters() if named[1].requires_grad]
    optimizer = plan.optimizer.build(trained, plan.config.learning_rate)
    remember_rates(optimizer)
    with reporter.phase(f"set up on {device}"):
        denoiser, optimizer = accelerator.prepare(bare, optimizer)
    return TrainingState(
        plan=plan,
        accelerator=accelerator,
        denoiser=denoiser,
        bare_denoiser=bare,
        noise_process=plan.family.noise_process(location),
        optimizer=optimizer,
        built_with=settings_of(optimizer),
        total_steps=0,
        swapped=swapped,
    )


def _check_can_validate(state: TrainingState) -> None:
    """Refuse validation of sharded weights: the first process alone would wait for the others in its first forward.

    Raises:
        ConfigError: In every process, before the first step.
    """
    config, processes = state.plan.config, state.accelerator.num_processes
    asked = {"validation_steps": config.validation_steps, "validation_on_startup": config.validation_on_startup}
    asked = {key: value for key, value in asked.items() if value}
    if processes == 1 or not asked or not any(map(is_sharded, state.bare_denoiser.parameters())):
        return
    raise ConfigError(
        f"{' and '.join(f'{key} = {json.dumps(value)}' for key, value in asked.items())}: the weights of this run are "
        f"sharded over {processes} processes, and validation needs whole weights in the first one\n"
        'hint: set "validation_steps": 0 and "validation_on_startup": false, or train without sharding'
    )


def _check_can_regularise(state: TrainingState) -> None:
    """Refuse regularisation sets with sharded weights: their second forward would wait for processes without one.

    Raises:
        ConfigError: In every process, before the first step.
    """
    names = [plan.id for plan in state.plan.data.target_sets if plan.config.is_regularisation_data]
    sharded = state.accelerator.num_processes > 1 and any(map(is_sharded, state.bare_denoiser.parameters()))
    if names and sharded:
        raise ConfigError(
            f"dataset {', '.join(map(repr, names))}: is_regularisation_data = true: the weights of this run are "
            f"sharded over {state.accelerator.num_processes} processes, and its samples need a second forward of whole "
            "weights\nhint: remove these sets, or train without sharding"
        )


def _encoded_in_training(prepared: PreparedRun) -> list[PlacedImage]:
    """Return the images that later steps encode, as far as they are known: of crops drawn each epoch, the first."""
    caches = prepared.caches
    if not caches.encode_in_training:
        return []
    planned = filter(caches.encodes_in_training, every_placed_image(prepared))
    return [*prepared.on_demand, *(image for image in planned if not caches.encodes_on_demand(image))]


def _fill_caches(
    plan: RunPlan, prepared: PreparedRun, encoders: Encoders, accelerator: Accelerator, reporter: Reporter
) -> None:
    texts, images = prepared.texts, prepared.images
    fill_caches(texts, images, prepared.caches, encoders, accelerator, reporter, batch_size=plan.config.vae_batch_size)
    if prepared.on_demand:
        reporter.say(f"{len(prepared.on_demand)} images are encoded when a batch first needs them")
    elif not texts and not images:
        reporter.say("caches: complete, nothing to encode")


class _LazySampler:
    """Builds the family's sampler when the first image is drawn: a run without validation needs no VAE."""

    def __init__(self, plan: RunPlan, location: ModelLocation, state: TrainingState, encoders: Encoders) -> None:
        self._plan, self._location, self._state, self._encoders = plan, location, state, encoders
        self._sampler: Sampler | None = None

    def __call__(self, request: ValidationRequest) -> Image.Image:
        if self._sampler is None:
            self._sampler = self._plan.family.make_sampler(
                self._location,
                self._plan.flavour,
                self._state.bare_denoiser,
                self._encoders.idle_image_encoder(),
                self._state.accelerator.device,
                self._state.compute_dtype,
            )
        with self._encoders.in_use, self._state.autocast():
            return self._sampler(request)
