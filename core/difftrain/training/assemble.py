"""From a plan to everything the loop needs, in the order of a run; each heavy part is let go before the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from difftrain.checkpoints.checkpoint_files import load_checkpoint
from difftrain.checkpoints.resume_state import Resumed, ResumeState, trained_dtype
from difftrain.data.caching.sample_caches import encode_images, encode_texts
from difftrain.data.streaming.batch_reader import BatchReader, Remake
from difftrain.data.streaming.epoch import EpochRules, draw_visit
from difftrain.data.streaming.sample_extras import SampleExtras
from difftrain.data.streaming.stream import BatchStream
from difftrain.machine.processes import first_process_first
from difftrain.output.output_dir import PICTURES_FOLDER
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.encoded_form import model_identity
from difftrain.startup.prepare_run import PreparedRun
from difftrain.startup.run_length import total_steps
from difftrain.steps.optimizer_state import settings_of
from difftrain.steps.step import remember_rates
from difftrain.steps.training_state import Trainee
from difftrain.training.adapted_model import load_adapted
from difftrain.training.frozen_encoders import Encoders
from difftrain.training.open_stream import open_stream
from difftrain.types import ModelLocation, Reporter, Sampler, ValidationRequest
from difftrain.validation.scenes import Scene
from difftrain.validation.validator import Validator

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image


@dataclass(kw_only=True)
class AssembledRun:
    """A run that is ready to train."""

    trainee: Trainee
    stream: BatchStream
    validator: Validator
    resumed_from: Path | None
    resumed_state: ResumeState | None
    """What that checkpoint says of its run."""


def assemble(
    plan: RunPlan, ready: PreparedRun, resumed: Resumed | None, accelerator: Accelerator, reporter: Reporter
) -> AssembledRun:
    """Fill the caches, load and adapt the denoiser, resume.

    Raises:
        DifftrainError: Whatever a user can mend; caches that were filled stay.
    """
    config = plan.config
    checkpoint, state = resumed or (None, None)
    encoders = Encoders(plan, ready.location, accelerator.device)
    extras = SampleExtras(plan.data, plan.family, plan.loss)
    extras.check([*ready.prepared.samples, *ready.prepared.held_out])
    _say_what_is_not_drawn(ready.scenes, plan, reporter)
    with first_process_first():
        _fill_caches(plan, ready, encoders, reporter)
    encoders.make_room()

    trainee = _load_trainee(plan, ready.location, accelerator, reporter)
    if checkpoint and state:
        load_checkpoint(trainee, checkpoint, state)

    remake = Remake(
        image_encoder=encoders.image, text_encoder=encoders.text, let_go=encoders.make_room, in_use=encoders.in_use
    )
    sample_latents = config.vae_cache_sample == "sample"
    reader = BatchReader(
        ready.caches, plan.family, remake, seed=config.seed, sample_latents=sample_latents, extras=extras
    )
    opened = open_stream(plan, ready.prepared.samples, reader, accelerator, trainee.position if checkpoint else None)
    trainee.position, trainee.data = opened.position, opened.facts
    trainee.total_steps = total_steps(plan, opened.steps_left, trainee.step)
    fixed_rules = EpochRules(seed=config.seed, batch_size=1, repeats={})
    validator = Validator(
        scenes=list(ready.scenes),
        fixed=[draw_visit(sample, 0, 0, fixed_rules) for sample in ready.measured],
        held_out=bool(ready.prepared.held_out),
        seeds=config.validation_num_seeds,
        model_identity=model_identity(plan, ready.location),
        reader=reader,
        sampler=_LazySampler(plan, ready.location, trainee, encoders),
        folder=config.output_dir / PICTURES_FOLDER,
        reporter=reporter,
    )
    return AssembledRun(
        trainee=trainee, stream=opened.batches, validator=validator, resumed_from=checkpoint, resumed_state=state
    )


def _say_what_is_not_drawn(scenes: Sequence[Scene], plan: RunPlan, reporter: Reporter) -> None:
    taken = plan.flavour.pipeline_references
    most = max((len(scene.references) for scene in scenes), default=0)
    if plan.config.validation_steps and taken is not None and most > taken:
        reporter.say(
            f"note: samples have up to {most} references, but the stock pipeline takes {taken}: "
            "validation pictures are drawn with the first alone, training sees all"
        )


def _load_trainee(plan: RunPlan, location: ModelLocation, accelerator: Accelerator, reporter: Reporter) -> Trainee:
    """The denoiser with its adapter and optimizer, on the run's device; nothing is trained yet."""
    device = accelerator.device
    dtype = getattr(torch, trained_dtype(plan))
    bare = load_adapted(plan, location, device=device, adapter_dtype=dtype, reporter=reporter)
    if plan.config.gradient_checkpointing:
        plan.family.enable_checkpointing(bare)
    trained = [named for named in bare.named_parameters() if named[1].requires_grad]
    optimizer = plan.optimizer.build(trained, plan.config.learning_rate)
    remember_rates(optimizer)
    with reporter.phase(f"set up on {device}"):
        denoiser, optimizer = accelerator.prepare(bare, optimizer)
    return Trainee(
        plan=plan,
        accelerator=accelerator,
        denoiser=denoiser,
        bare_denoiser=bare,
        noise_process=plan.family.noise_process(location),
        optimizer=optimizer,
        built_with=settings_of(optimizer),
        total_steps=0,
    )


def _fill_caches(plan: RunPlan, ready: PreparedRun, encoders: Encoders, reporter: Reporter) -> None:
    caches, batch_size = ready.caches, plan.config.vae_batch_size
    texts = encode_texts(ready.texts, caches, encoders.text, reporter=reporter)
    encoders.make_room()
    images = encode_images(ready.images, caches, encoders.image, reporter=reporter, batch_size=batch_size)
    if caches.removed:
        reporter.say(f"{len(caches.removed)} damaged cache entries were removed and made again")
    if not texts and not images:
        reporter.say("caches: complete, nothing to encode")


class _LazySampler:
    """Builds the family's sampler when the first picture is drawn: a run without validation needs no VAE."""

    def __init__(self, plan: RunPlan, location: ModelLocation, trainee: Trainee, encoders: Encoders) -> None:
        self._plan, self._location, self._trainee, self._encoders = plan, location, trainee, encoders
        self._sampler: Sampler | None = None

    def __call__(self, request: ValidationRequest) -> Image.Image:
        if self._sampler is None:
            self._sampler = self._plan.family.make_sampler(
                self._location,
                self._plan.flavour,
                self._trainee.bare_denoiser,
                self._encoders.resting_image(),
                self._trainee.accelerator.device,
                self._trainee.compute_dtype,
            )
        with self._encoders.in_use, self._trainee.autocast():
            return self._sampler(request)
