"""From a plan to everything the loop needs, in the order of a run; each heavy part is let go before the next."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from difftrain.data.encode import SampleCaches, TextItem, encode_images, encode_texts
from difftrain.data.epoch import EpochRules, draw_visit
from difftrain.data.image import load_placed
from difftrain.data.loader import BatchReader, Remake
from difftrain.data.prepare import PreparedData
from difftrain.data.stream import BatchStream
from difftrain.errors import DataError
from difftrain.model.attention import choose_attention
from difftrain.train.agreement import data_facts
from difftrain.train.checkpoint import load_checkpoint
from difftrain.train.encoders import Encoders
from difftrain.train.optimizer_state import settings_of
from difftrain.train.output_dir import PICTURES_FOLDER
from difftrain.train.plan import RunPlan, rounds_of, total_steps
from difftrain.train.processes import first_process_first
from difftrain.train.resume_state import ResumeState, find_state
from difftrain.train.scenes import Scene, choose_scenes, spread
from difftrain.train.step import Trainee
from difftrain.train.validate import Validator
from difftrain.types import ModelLocation, Reporter, Sample, Sampler, ValidationRequest

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

FIXED_LOSS_SAMPLES = 4


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
    plan: RunPlan, prepared: PreparedData, location: ModelLocation, accelerator: Accelerator, reporter: Reporter
) -> AssembledRun:
    """Fill the caches, load and adapt the denoiser, resume.

    Raises:
        DifftrainError: Whatever a user can mend; caches that were filled stay.
    """
    config, family = plan.config, plan.family
    checkpoint, state = find_state(plan) or (None, None)
    encoders = Encoders(plan, location, accelerator.device)
    caches = SampleCaches(
        plan.data,
        image_identity=encoders.image_identity,
        text_identity=encoders.text_identity,
        text_sees_references=family.text_sees_references,
    )
    validates = bool(config.validation_steps or config.validation_on_startup)
    validated = (prepared.held_out or prepared.samples) if validates else ()
    measured = spread(validated, FIXED_LOSS_SAMPLES)  # pictures are drawn from the files: only these need latents
    scenes = choose_scenes(validated, config, plan.prompts, family.pixel_multiple) if validates else []
    _say_what_is_not_drawn(scenes, plan, reporter)
    with first_process_first():
        _check_scenes(scenes, reporter)
        _fill_caches([*prepared.samples, *measured], scenes, plan, caches, encoders, reporter)
    encoders.make_room()

    trainee = _load_trainee(plan, location, encoders, accelerator, reporter)
    if checkpoint and state:
        load_checkpoint(trainee, checkpoint, state)

    remake = Remake(image_encoder=encoders.image, text_encoder=encoders.text)
    reader = BatchReader(caches, family, remake, seed=config.seed, sample_latents=config.vae_cache_sample == "sample")
    rounds = rounds_of(plan, prepared.samples, start=trainee.position, processes=accelerator.num_processes)
    stream = BatchStream(
        rounds, reader, process=accelerator.process_index, pin_memory=accelerator.device.type == "cuda"
    )
    trainee.total_steps = total_steps(plan, rounds, trainee.step)
    trainee.data = data_facts(prepared.samples)
    fixed_rules = EpochRules(seed=config.seed, batch_size=1, repeats={})
    validator = Validator(
        scenes=scenes,
        fixed=[draw_visit(sample, 0, 0, fixed_rules) for sample in measured],
        held_out=bool(prepared.held_out),
        seeds=config.validation_num_seeds,
        model_identity="|".join(
            (
                location.identity,
                plan.flavour.name,
                config.base_model_precision,
                str(encoders.compute_dtype),
                encoders.image_identity,
                encoders.text_identity,
            )
        ),
        reader=reader,
        sampler=_LazySampler(plan, location, trainee, encoders),
        folder=config.output_dir / PICTURES_FOLDER,
        reporter=reporter,
    )
    return AssembledRun(
        trainee=trainee, stream=stream, validator=validator, resumed_from=checkpoint, resumed_state=state
    )


def _check_scenes(scenes: Sequence[Scene], reporter: Reporter) -> None:
    """Open or make every picture of the validations once: a damaged one must not end a run at its first validation.

    Raises:
        DataError: With every picture that cannot be used.
    """
    pictures = {
        (placed.record.path, placed.record.recipe): placed
        for scene in scenes
        for placed in (*scene.references, *([scene.target] if scene.target else []))
    }
    if not pictures:
        return
    problems = []
    with reporter.phase("check pictures to draw", len(pictures)) as phase:
        for placed in pictures.values():
            try:
                load_placed(placed)
            except DataError as error:
                problems.append(str(error))
            phase.advance(item=placed.record.key)
    if problems:
        raise DataError(*problems)


def _say_what_is_not_drawn(scenes: Sequence[Scene], plan: RunPlan, reporter: Reporter) -> None:
    taken = plan.flavour.pipeline_references
    most = max((len(scene.references) for scene in scenes), default=0)
    if plan.config.validation_steps and taken is not None and most > taken:
        reporter.say(
            f"note: samples have up to {most} references, but the stock pipeline takes {taken}: "
            "validation pictures are drawn with the first alone, training sees all"
        )


def _load_trainee(
    plan: RunPlan, location: ModelLocation, encoders: Encoders, accelerator: Accelerator, reporter: Reporter
) -> Trainee:
    """The denoiser with its adapter and optimizer, on the run's device; nothing is trained yet."""
    choose_attention(plan.config.attention_mechanism, accelerator.device.type)
    with reporter.phase("load model"):
        bare = plan.family.load_denoiser(location, encoders.compute_dtype)
    _prepare_denoiser(plan, bare, accelerator.device, reporter)
    trained = [parameter for parameter in bare.parameters() if parameter.requires_grad]
    optimizer = plan.optimizer.build(trained, plan.config.learning_rate)
    with reporter.phase(f"move model to {accelerator.device}"):
        denoiser, optimizer = accelerator.prepare(bare, optimizer)
    return Trainee(
        plan=plan,
        accelerator=accelerator,
        denoiser=denoiser,
        bare_denoiser=bare,
        optimizer=optimizer,
        built_with=copy.deepcopy(settings_of(optimizer)),
        total_steps=0,
    )


def _fill_caches(
    samples: Sequence[Sample],
    scenes: Sequence[Scene],
    plan: RunPlan,
    caches: SampleCaches,
    encoders: Encoders,
    reporter: Reporter,
) -> None:
    config = plan.config
    items = list(caches.text_items(samples)) + [scene.text for scene in scenes]
    items += [TextItem(caption=config.validation_negative_prompt, references=scene.references) for scene in scenes]
    texts = encode_texts(items, caches, encoders.text, reporter=reporter)
    encoders.make_room()
    images = encode_images(samples, caches, encoders.image, reporter=reporter, batch_size=config.vae_batch_size)
    if caches.removed:
        reporter.say(f"{len(caches.removed)} damaged cache entries were removed and made again")
    if not texts and not images:
        reporter.say("caches: complete, nothing to encode")


def _prepare_denoiser(plan: RunPlan, denoiser: nn.Module, device: torch.device, reporter: Reporter) -> None:
    """Quantise, checkpoint, adapt; what is trained is in the optimizer's dtype, all else is frozen."""
    config = plan.config
    denoiser.requires_grad_(False)
    targets = plan.family.adapter_targets(denoiser)
    if plan.quantizer:
        patterns = plan.family.keep_unquantized()
        with reporter.phase(f"quantise to {plan.quantizer.name}"):
            plan.quantizer.quantize(
                denoiser, device, lambda name: any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
            )
    if config.gradient_checkpointing:
        plan.family.enable_checkpointing(denoiser)
    torch.manual_seed(config.seed)  # the adapter's initial weights
    low = plan.optimizer.parameter_dtype == "bfloat16" and config.mixed_precision == "bf16"
    plan.adapter.attach(denoiser, targets, torch.bfloat16 if low else torch.float32)
    count = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
    reporter.say(f"adapter {plan.adapter.name}: {len(targets)} modules, {count:,} trained weights")


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
        with self._trainee.autocast():
            return self._sampler(request)
