"""Validation: fixed-seed images through the stock pipeline, and the loss on the same samples and noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image

from difftrain.contracts import ValidationResult
from difftrain.data.files.pixels import load_placed
from difftrain.data.seeding import derive_seed
from difftrain.data.streaming.batch_reader import BatchReader
from difftrain.data.streaming.epoch_plan import Visit
from difftrain.errors import first_few
from difftrain.machine.interrupts import Interrupts
from difftrain.output.observers import Observers
from difftrain.steps.step import loss_at
from difftrain.steps.training_state import TrainingState
from difftrain.types import Reporter, Sampler, ValidationRequest
from difftrain.validation.drawn_files import file_name, open_drawn, save_drawn, save_png, step_folder
from difftrain.validation.psnr import Scores, psnr
from difftrain.validation.requests import guidance_of, request_of
from difftrain.validation.run_summary import describe_images
from difftrain.validation.scenes import Scene, image_identity
from difftrain.validation.sheet import Row, Shown, draw_sheet

FIXED_SIGMAS = (0.25, 0.5, 0.75)
"""Noise levels of the fixed-sample loss: weak, medium and strong noise."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The images of one validation."""

    files: Mapping[str, Path]
    """By name; ``sheet`` shows all of them."""
    scores: Scores
    identity: str
    """Identifies what these scores measure: which images, drawn how."""

    def added_to(self, result: ValidationResult) -> ValidationResult:
        """Return an earlier result with the files and, if any scene has a target, the PSNR added."""
        measured = self.scores.as_metrics()
        return replace(
            result,
            metrics={**result.metrics, **measured},
            by_image=self.scores.by_image(),
            measured_on={**result.measured_on, **({"psnr": self.identity} if measured else {})},
            files=self.files,
        )


@dataclass(kw_only=True)
class Validator:
    """Draws the scenes and measures the fixed-sample loss; only the weights differ between validations."""

    scenes: list[Scene]
    fixed: list[Visit]
    """Samples of the fixed-sample loss."""
    held_out: bool
    """Whether these samples are never trained on."""
    seeds: int
    """How often each scene is drawn, with consecutive seeds."""
    model_identity: str
    """Content, flavour and number formats of the frozen model and of its encoders."""
    reader: BatchReader
    sampler: Sampler
    folder: Path
    reporter: Reporter
    said_base_is_missing: bool = False

    def measure(self, state: TrainingState) -> ValidationResult:
        """Measure the loss of the fixed samples."""
        loss = self.fixed_loss(state)
        return ValidationResult(
            step=state.step,
            metrics={} if loss is None else {"fixed_loss": loss},
            measured_on={"fixed_loss": self.samples_identity(state)},
        )

    def draw(self, state: TrainingState) -> Drawn:
        """Draw every scene with every seed, and the sheet of all."""
        scores = Scores()
        if not self.scenes:
            return Drawn(files={}, scores=scores, identity=self.images_identity(state))
        self._say_base_is_missing(state)
        folder = step_folder(self.folder, state.step)
        files: dict[str, Path] = {}
        rows = []
        total = len(self.scenes) * self.seeds
        with (
            _evaluating(state),
            _at_strength_of_validation(state),
            self.reporter.phase(f"validation at step {state.step}", total) as phase,
        ):
            for scene in self.scenes:
                drawn_with = scene.drawn_with(state.plan.flavour.pipeline_references)
                references = tuple(map(load_placed, drawn_with))
                images = []
                for number in range(1, self.seeds + 1):
                    images.append(self.sampler(self._request(scene, references, state, number)))
                    name = file_name(scene.name, number)
                    files[name] = folder / f"{name}.png"
                    save_drawn(images[-1], files[name], self._identity(scene, state))
                    phase.advance(item=name)
                rows.append(self._judged_row(scene, references, images, scores, state))
        files["sheet"] = folder / "sheet.png"
        save_png(draw_sheet(rows, self._title(state.step, scores), step=state.step), files["sheet"])
        return Drawn(files=files, scores=scores, identity=self.images_identity(state))

    def fixed_loss(self, state: TrainingState) -> float | None:
        """Return the mean loss of the same few samples at the same noise, comparable between steps."""
        if not self.fixed:
            return None
        losses = []
        total = len(self.fixed) * len(FIXED_SIGMAS)
        with _evaluating(state), self.reporter.phase("loss on fixed samples", total) as phase:
            for index, visit in enumerate(self.fixed):
                batch = self.reader.read([visit])
                seed = state.plan.config.seed
                torch.manual_seed(derive_seed(seed, "fixed loss layers", index))  # for the family's own draws: guidance
                generator = torch.Generator().manual_seed(derive_seed(seed, "fixed loss", index))
                noise = torch.randn(batch.latents.shape, generator=generator)
                for level in FIXED_SIGMAS:
                    losses.append(
                        loss_at(state, state.bare_denoiser, batch, torch.tensor([level]), noise).mean().item()
                    )
                    phase.advance(item=visit.name)
        return sum(losses) / len(losses)

    def samples_identity(self, state: TrainingState) -> str:
        """Return what identifies the fixed-sample loss: its samples and noise, and the model's inputs.

        All options of family and flavour are part of it: only they know which of them reach the model.
        """
        config, plan = state.plan.config, state.plan
        asked = [options.identity() for options in (plan.family, plan.flavour, plan.loss)]
        samples = [
            (visit.caption, *map(image_identity, (visit.sample.target, *visit.references))) for visit in self.fixed
        ]
        asked += [extras for visit in self.fixed if (extras := self.reader.extras_identity(visit))]
        return _digest(samples, asked, config.seed, config.vae_cache_sample, config.loss_type, self.model_identity)

    def images_identity(self, state: TrainingState) -> str:
        """Return what identifies the PSNR: its images, and how they are drawn; a few hexadecimal digits."""
        judged = [(self._identity(scene, state), image_identity(scene.target)) for scene in self.scenes if scene.target]
        strength = state.plan.adapter.validation_strength
        return _digest(judged, self.seeds, *([] if strength == 1 else [strength]))

    def _request(
        self, scene: Scene, references: tuple[Image.Image, ...], state: TrainingState, seed_number: int
    ) -> ValidationRequest:
        plan, most = state.plan, state.plan.flavour.pipeline_references
        negative = scene.text(plan.config.validation_negative_prompt, most)
        return request_of(
            plan,
            text=self.reader.text(scene.text(scene.prompt, most)),
            negative_text=self.reader.text(negative) if guidance_of(plan)[1] > 1 else None,
            references=references,
            size=scene.size,
            seed_number=seed_number,
        )

    def _identity(self, scene: Scene, state: TrainingState) -> str:
        return scene.identity(state.plan.config, self.model_identity + state.plan.adapter.first_effect())

    def _base(self, scene: Scene, state: TrainingState) -> Image.Image | None:
        """Return the scene as this run drew it before its first step, with the first seed; None if it did not."""
        if state.step == 0:
            return None
        return open_drawn(self._base_path(scene), self._identity(scene, state))

    def _base_path(self, scene: Scene) -> Path:
        return step_folder(self.folder, 0) / f"{file_name(scene.name, 1)}.png"

    def _say_base_is_missing(self, state: TrainingState) -> None:
        """Say once per run why base images are missing: a resumed run may draw differently."""
        if state.step == 0 or self.said_base_is_missing:
            return
        there = [scene for scene in self.scenes if self._base_path(scene).is_file()]
        missing = [scene.name for scene in there if self._base(scene, state) is None]
        if missing:
            self.said_base_is_missing = True
            self.reporter.say(
                f"note: {len(missing)} of {len(there)} images of step 0 are not shown as base because this run draws "
                f"or computes differently, or they are damaged: {first_few(missing)}"
            )

    def _judged_row(
        self,
        scene: Scene,
        references: tuple[Image.Image, ...],
        images: Sequence[Image.Image],
        scores: Scores,
        state: TrainingState,
    ) -> Row:
        """Return the scene's row of the sheet; add its PSNR to ``scores``."""
        base = self._base(scene, state)
        if scene.target is None:
            return Row(
                caption=scene.prompt,
                references=tuple(Shown(image=reference) for reference in references),
                base=Shown(image=base) if base else None,
                result=Shown(image=images[0]),
                target=None,
            )
        target = load_placed(scene.target)
        size = images[0].size
        values = [psnr(image, target) for image in images]
        scores.images[scene.name] = fmean(values)
        # also at the result's size, because fewer pixels would make it another measure
        alike = [psnr(image, target, size=size) if image.size == target.size else None for image in references]
        if measured := [value for value in alike if value is not None]:
            scores.references[scene.name] = measured[0]
        return Row(
            caption=scene.prompt,
            references=tuple(map(_shown, references, alike)),
            base=_shown(base, psnr(base, target)) if base else None,
            result=_shown(images[0], values[0]),
            target=Shown(image=target),
        )

    def _title(self, step: int, scores: Scores) -> str:
        if scores.mean is None:
            return f"step {step}"
        drawn = describe_images(len(scores.images), held_out=self.held_out, seeds=self.seeds)
        reference = "" if scores.reference_mean is None else f"reference {scores.reference_mean:.1f} dB, "
        return f"step {step}: PSNR to the target, {drawn}: {reference}result {scores.mean:.1f} dB"


@dataclass(kw_only=True)
class Validations:
    """The validations of one run: in the main process, while the others wait."""

    validator: Validator
    state: TrainingState
    observers: Observers
    interrupts: Interrupts

    def validate(self) -> None:
        """Measure, draw and tell the observers. A signal ends it at once; they still get what was measured by then."""
        if self.state.accelerator.is_main_process:
            result = None
            # an image is no reason to lose a run
            self.state.drop_recordings()  # drawing needs the memory
            with self.observers.reporting_failures_of("the validation"), self.interrupts.cut_short():
                self.interrupts.ask()
                result = self.validator.measure(self.state)
                result = self.validator.draw(self.state).added_to(result)
            if result is not None:
                self.observers.validation_end(result)
        self.state.accelerator.wait_for_everyone()


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def _shown(image: Image.Image, decibel: float | None) -> Shown:
    return Shown(image=image, note="" if decibel is None else f"{decibel:.1f} dB")


def _at_strength_of_validation(state: TrainingState) -> AbstractContextManager[None]:
    strength = state.plan.adapter.validation_strength
    return nullcontext() if strength == 1 else state.plan.adapter.at_strength(state.bare_denoiser, strength)


@contextmanager
def _evaluating(state: TrainingState) -> Iterator[None]:
    """Disable dropout and gradients, and use the optimizer's weights for evaluation; afterwards the model is back in
    training mode, even after an interrupt."""
    state.bare_denoiser.eval()
    try:
        with state.evaluating(), state.uncompiled(), torch.no_grad():
            yield
    finally:
        state.bare_denoiser.train()
