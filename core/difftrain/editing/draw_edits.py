"""Draws the grid of an edit: loads the model as its run did, and draws through the family's sampler. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from difftrain.data.caching.text_views import TextViews
from difftrain.data.files.pixels import load_placed
from difftrain.editing.column_weights import ColumnWeights, read_weights_of
from difftrain.editing.edit_results import DrawnEdit, Results, for_sheet
from difftrain.editing.measure_edits import measure
from difftrain.editing.plan_edit import EditPlan, Variant
from difftrain.errors import CheckpointError, ConfigError, MachineError, first_few, printable
from difftrain.machine.processes import start_accelerator
from difftrain.model.block_swapping import SwappedBlocks
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.encoded_form import compute_dtype
from difftrain.training.adapted_model import load_adapted
from difftrain.training.frozen_encoders import Encoders
from difftrain.training.settle_precision import settle_precision
from difftrain.types import ModelLocation, PlacedImage, Reporter, Sampler, TextEmbeds
from difftrain.validation.drawn_files import file_name, save_png
from difftrain.validation.requests import guidance_of, request_of
from difftrain.validation.scenes import Scene

_Asked = tuple[str, tuple[PlacedImage, ...]]
"""A text with the references that its encoder sees."""


def draw_edits(plan: EditPlan, location: ModelLocation, reporter: Reporter) -> Results:
    """Draw everything and write each result at once; the sheet and the metrics follow at the end, also an early one.

    Raises:
        DifftrainError: For anything that the user can fix; an adapter that does not fit the model is found before the
            model is loaded.
    """
    check_weights(plan, location)
    accelerator = start_accelerator()
    device = accelerator.device
    model = settle_precision(plan.model, location, accelerator, None, reporter)
    plan = replace(plan, model=model)
    encoders = Encoders(model, location, device)
    texts = _encoded(plan, encoders, reporter)
    denoiser = load_adapted(
        model,
        location,
        device=device,
        adapter_dtype=getattr(torch, plan.adapter.dtype),
        reporter=reporter,
        swapped=None if model.adapter.trains_base else SwappedBlocks(device),
    )
    denoiser.requires_grad_(False).eval()
    sampler = model.family.make_sampler(
        location, model.flavour, denoiser, encoders.idle_image_encoder(), device, encoders.compute_dtype
    )
    drawing = _Drawing(plan, ColumnWeights(plan, denoiser, location), sampler, texts, device)
    try:
        drawing.draw(reporter)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            f"out of memory while drawing: {str(error).splitlines()[0] if str(error) else 'no reason given'}\n"
            f"hint: lower --validation_resolution, now {model.config.validation_resolution}, or set "
            "--base_model_precision, for example int8-quanto"
        ) from error
    finally:
        if drawn := len(drawing.results.drawn):  # also of a grid that a signal ended
            drawing.results.write()
            if drawn < plan.count:
                reporter.say(f"{drawn} of {plan.count} results are drawn; the sheet shows these")
    return drawing.results


def check_weights(plan: EditPlan, location: ModelLocation) -> None:
    """Compare names and shapes of all weights with the model, on the meta device.

    Raises:
        CheckpointError: If one does not fit: the adapter is another model's.
    """
    model = plan.model
    empty = model.family.empty_denoiser(location)
    try:
        model.adapter.adapt(empty, model.family, torch.float32)
    except ConfigError as error:
        raise CheckpointError(_of_another_model(plan, error.problems[0])) from error
    own = {name: tuple(tensor.shape) for name, tensor in model.adapter.state(empty).items()}
    for weights in plan.adapter.weights:
        there = {name: tuple(tensor.shape) for name, tensor in read_weights_of(plan, weights.path).items()}
        wrong = sorted(name for name in {*own, *there} if own.get(name) != there.get(name))
        if wrong:
            text = f"{len(wrong)} of its {len(there)} weights do not fit: {first_few(wrong)}"
            raise CheckpointError(_of_another_model(plan, text))


def _of_another_model(plan: EditPlan, problem: str) -> str:
    model = plan.model
    name = model.config.pretrained_model_name_or_path or model.flavour.hub_id
    return (
        f"--adapter {printable(plan.asked.adapter)} is not an adapter of {name} ({model.family.name} "
        f"{model.flavour.name}): {problem}\nhint: name the model that it was trained on, with --model, --flavour and "
        "--pretrained_model_name_or_path"
    )


def _encoded(plan: EditPlan, encoders: Encoders, reporter: Reporter) -> dict[_Asked, TextEmbeds]:
    """Return the embeddings of all instructions, each encoded once; the encoders are freed."""
    model = plan.model
    negative = [model.config.validation_negative_prompt] if guidance_of(model)[1] > 1 else []
    asked = [_asked(scene, text, model) for scene in plan.scenes for text in (scene.prompt, *negative)]
    views = TextViews(partial(model.family.text_view, flavour=model.flavour))
    found: dict[_Asked, TextEmbeds] = {}
    with reporter.phase("load text encoders"):
        encoder = encoders.text()
    unique = list(dict.fromkeys(asked))
    with reporter.phase("encode instructions", len(unique)) as phase:
        for text, references in unique:
            seen = [[views.load(image) for image in references]] if references else None
            (found[text, references],) = encoder.encode([text], seen)
            phase.advance(item=text[:60])
    del encoder
    encoders.release()
    return found


def _asked(scene: Scene, text: str, model: ModelPlan) -> _Asked:
    return text, scene.references if model.family.text_sees_references else ()


@dataclass
class _Drawing:
    """A loaded model, and the results it has drawn."""

    plan: EditPlan
    weights: ColumnWeights
    sampler: Sampler
    texts: Mapping[_Asked, TextEmbeds]
    device: torch.device

    def __post_init__(self) -> None:
        self.results = Results(plan=self.plan, precision=self.plan.model.config.base_model_precision)

    def draw(self, reporter: Reporter) -> None:
        """Draw column by column, since each needs its weights in place."""
        plan = self.plan
        with reporter.phase("draw", plan.count) as phase:
            for column, variant in enumerate(plan.variants):
                with self.weights.of(variant):
                    for scene in range(len(plan.scenes)):
                        for name in self._draw_scene(scene, column, variant):
                            phase.advance(item=name)

    def _draw_scene(self, place: int, column: int, variant: Variant) -> Sequence[str]:
        plan, scene = self.plan, self.plan.scenes[place]
        references = tuple(map(load_placed, scene.references))
        target = load_placed(scene.target) if scene.target else None
        self._remember(place, references, target)
        names = []
        for number in range(1, plan.asked.seeds + 1):
            with self._autocast(), torch.no_grad():
                image = self.sampler(self._request(scene, references, number))
            names.append(file_name(f"{scene.name}-{variant.name}", number))
            path = plan.output / f"{names[-1]}.png"
            save_png(image, path)
            metrics = measure(image, target) if target else {}
            if target and references[0].size == target.size:
                # at the result's size, because fewer pixels would make it another measure
                self.results.copies.setdefault(place, measure(references[0], target, size=image.size))
            self.results.drawn.append(
                DrawnEdit(
                    scene=place,
                    variant=column,
                    seed_number=number,
                    path=path,
                    small=for_sheet([image])[0],
                    metrics=metrics,
                )
            )
        return names

    def _remember(self, place: int, references: Sequence[Image.Image], target: Image.Image | None) -> None:
        self.results.inputs.setdefault(place, for_sheet(references))
        if target is not None:
            self.results.targets.setdefault(place, for_sheet([target])[0])

    def _request(self, scene: Scene, references: tuple[Image.Image, ...], number: int) -> Any:
        model = self.plan.model
        negative = self.texts.get(_asked(scene, model.config.validation_negative_prompt, model))
        return request_of(
            model,
            text=self.texts[_asked(scene, scene.prompt, model)],
            negative_text=negative if guidance_of(model)[1] > 1 else None,
            references=references,
            size=scene.size,
            seed_number=number,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = getattr(torch, compute_dtype(self.plan.model.config))
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype=dtype)
