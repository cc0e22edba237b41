"""Validation: fixed-seed pictures through the stock pipeline, and the loss on the same fixed samples and noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from difftrain.data.encode import TextItem
from difftrain.data.epoch import Visit
from difftrain.data.image import load_placed
from difftrain.data.loader import BatchReader
from difftrain.data.seeding import derive_seed
from difftrain.train.sheet import Row, draw_sheet
from difftrain.train.step import Trainee, loss_at
from difftrain.types import PlacedImage, Reporter, Sample, Sampler, Size, ValidationRequest

if TYPE_CHECKING:
    from difftrain.config.schema import RunConfig

FIXED_SIGMAS = (0.25, 0.5, 0.75)
"""Noise levels of the fixed-sample loss: little, middling and strong noise."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One validation picture: what is asked for, of which references."""

    name: str
    prompt: str
    references: tuple[PlacedImage, ...]
    target: PlacedImage | None
    """Shown beside the result; None when the prompt is not the sample's own."""
    size: Size

    @property
    def text(self) -> TextItem:
        return TextItem(caption=self.prompt, references=self.references)


def choose_scenes(
    samples: Sequence[Sample], config: RunConfig, prompts: Mapping[str, str], multiple: int
) -> list[Scene]:
    """The pictures that every validation of a run draws.

    First ``num_eval_images`` samples with their own instructions, taken from all datasets in turn; then each
    validation prompt, with the references of one of these samples in turn.

    Args:
        prompts: Validation prompts by short name.
        multiple: Edges of the pictures are multiples of this, in pixels.
    """
    chosen = _spread(samples, config.num_eval_images)
    scenes = [_own_scene(sample, config, multiple) for sample in chosen]
    for index, (name, prompt) in enumerate(prompts.items()):
        references = scenes[index % len(chosen)].references if chosen else ()
        size = scenes[index % len(chosen)].size if chosen else _fit(config.validation_size, 1.0, multiple)
        scenes.append(Scene(name=name, prompt=prompt, references=references, target=None, size=size))
    return scenes


def _own_scene(sample: Sample, config: RunConfig, multiple: int) -> Scene:
    choice = sample.choices[0]
    captions = sample.captions if choice.captions is None else choice.captions
    width, height = sample.target.geometry.bucket
    return Scene(
        name=f"{sample.dataset_id}-{sample.target.record.key}".replace("/", "-"),
        prompt=captions[0],
        references=choice.references,
        target=sample.target,
        size=_fit(config.validation_size, width / height, multiple),
    )


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """A sample of every dataset in turn, each dataset beginning one further on: sets may share their photographs."""
    by_dataset: dict[str, list[Sample]] = {}
    for sample in samples:
        by_dataset.setdefault(sample.dataset_id, []).append(sample)
    turns = max((len(group) for group in by_dataset.values()), default=0)
    in_turn = [
        group[(turn + number) % len(group)]
        for turn in range(turns)
        for number, group in enumerate(by_dataset.values())
        if turn < len(group)
    ]
    return in_turn[:count]


def _fit(size: Size, aspect: float, multiple: int) -> Size:
    """A size of about the same area with the given width / height, on multiples."""
    area = size[0] * size[1]
    width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple


@dataclass(kw_only=True)
class Validator:
    """Draws the scenes and measures the fixed-sample loss; the same every time but for the weights."""

    scenes: list[Scene]
    fixed: list[Visit]
    """Samples of the fixed-sample loss."""
    reader: BatchReader
    sampler: Sampler
    folder: Path
    reporter: Reporter

    def draw(self, run: Trainee) -> dict[str, Path]:
        """Draw every scene; gives the written files by name, the sheet of all under ``sheet``."""
        if not self.scenes:
            return {}
        folder = self.folder / f"step-{run.step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        written: dict[str, Path] = {}
        rows = []
        with _evaluating(run), self.reporter.phase(f"validation at step {run.step}", len(self.scenes)) as phase:
            for scene in self.scenes:
                references = tuple(load_placed(image) for image in self._drawn_with(scene, run))
                result = self.sampler(self._request(scene, references, run))
                written[scene.name] = folder / f"{scene.name}.png"
                result.save(written[scene.name])
                rows.append(self._row(scene, references, result))
                phase.advance(item=scene.name)
        written["sheet"] = folder / "sheet.png"
        draw_sheet(rows, f"step {run.step}").save(written["sheet"])
        return written

    def fixed_loss(self, run: Trainee) -> float | None:
        """Mean loss of the same few samples at the same noise: comparable between steps, unlike a step's loss."""
        if not self.fixed:
            return None
        losses = []
        total = len(self.fixed) * len(FIXED_SIGMAS)
        with _evaluating(run), self.reporter.phase("loss on fixed samples", total) as phase:
            for index, visit in enumerate(self.fixed):
                batch = self.reader.read([visit], epoch=0, index=index)
                seed = run.plan.config.seed
                torch.manual_seed(derive_seed(seed, "fixed loss layers", index))  # what the family draws: guidance
                generator = torch.Generator().manual_seed(derive_seed(seed, "fixed loss", index))
                noise = torch.randn(batch.latents.shape, generator=generator)
                for level in FIXED_SIGMAS:
                    losses.append(loss_at(run, run.bare_denoiser, batch, torch.tensor([level]), noise).mean().item())
                    phase.advance(item=visit.name)
        return sum(losses) / len(losses)

    def _drawn_with(self, scene: Scene, run: Trainee) -> tuple[PlacedImage, ...]:
        """The references that the stock pipeline can take; training sees all of them."""
        return scene.references[: run.plan.flavour.pipeline_references]

    def _request(self, scene: Scene, references: tuple[Image.Image, ...], run: Trainee) -> ValidationRequest:
        config = run.plan.config
        guidance = config.validation_guidance
        negative = TextItem(caption=config.validation_negative_prompt, references=scene.references)
        return ValidationRequest(
            text=self.reader.text(scene.text),
            negative_text=self.reader.text(negative) if config.validation_guidance_real > 1 else None,
            references=references,
            width=scene.size[0],
            height=scene.size[1],
            steps=config.validation_num_inference_steps,
            guidance=run.plan.flavour.default_guidance if guidance is None else guidance,
            guidance_real=config.validation_guidance_real,
            seed=config.validation_seed,
        )

    def _row(self, scene: Scene, references: tuple[Image.Image, ...], result: Image.Image) -> Row:
        target = load_placed(scene.target) if scene.target else None
        return Row(caption=scene.prompt, references=references, result=result, target=target)


@contextmanager
def _evaluating(run: Trainee) -> Iterator[None]:
    """Without dropout and gradients; the model is in training mode again afterwards, also after an interrupt."""
    run.bare_denoiser.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        run.bare_denoiser.train()
