"""The plan of an edit: adapter, model, images and grid, all checked before a model is loaded. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difftrain.config.config_files import FlagValue
from difftrain.config.problems import Problems
from difftrain.contracts import Adapter
from difftrain.data.buckets import assign_bucket
from difftrain.editing.asked_edit import AskedEdit, read_asked
from difftrain.editing.find_adapter import FoundAdapter, find_adapter
from difftrain.editing.images_to_edit import ImagesToEdit, find_images
from difftrain.editing.model_of_adapter import model_of, trained_precision
from difftrain.planning.model_plan import ModelPlan
from difftrain.plugins.discovery import LoadedPlugins
from difftrain.types import GeometryRules, ImageRecord, PlacedImage, Reporter
from difftrain.validation.scenes import Scene, size_to_draw, with_files_of_their_own

EDITS_FOLDER = "edits"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One column of results: which weights, how strong."""

    strength: float
    weights: int | None
    """Place in :attr:`FoundAdapter.weights`; None for strength 0, which all weights share."""
    label: str
    """Above the column."""
    name: str
    """In names of files."""


@dataclass(frozen=True, kw_only=True)
class EditPlan:
    """Everything about an edit but tensors."""

    asked: AskedEdit
    model: ModelPlan
    adapter: FoundAdapter
    scenes: tuple[Scene, ...]
    """Each image as validation would draw it: its references, its instruction, the size."""
    variants: tuple[Variant, ...]
    output: Path
    trained_precision: str | None
    """``base_model_precision`` in training; None if nothing says."""
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many results there will be."""
        return len(self.scenes) * len(self.variants) * self.asked.seeds


def plan_edit(
    given: Mapping[str, str | Sequence[str]],
    flags: Mapping[str, FlagValue],
    *,
    config: Path | None,
    plugins: LoadedPlugins,
    reporter: Reporter,
) -> EditPlan:
    """Find adapter and images, and plan the model that they are for.

    Args:
        given: The command's own flags by name, as typed.
        flags: Run options by plain key, as typed; they win over what the run recorded.
        config: A run file to use instead of what the run recorded.
        plugins: Those of the command line; a run that names others loads its own.

    Raises:
        ConfigError: With every problem found.
    """
    problems = Problems()
    asked = read_asked(given, problems)
    images = adapter = model = None
    if asked is not None:
        with problems.catching():
            images = find_images(asked, problems, reporter)
        with problems.catching():
            adapter = find_adapter(asked.adapter, asked.checkpoints)
    if adapter is not None:
        with problems.catching():
            model = model_of(adapter, flags, config, plugins, problems)
    if asked is not None and model is not None:
        _check_fits(asked, model, problems)
    problems.raise_all()
    assert asked is not None and images is not None, "nothing is missing without a problem"  # noqa: PT018
    assert adapter is not None and model is not None, "nothing is missing without a problem"  # noqa: PT018
    trained = trained_precision(adapter)
    return EditPlan(
        asked=asked,
        model=model,
        adapter=adapter,
        scenes=tuple(_scenes(images, model)),
        variants=tuple(_variants(asked, adapter)),
        output=asked.output or _new_folder(adapter.home / EDITS_FOLDER),
        trained_precision=trained,
        notes=(*model.notes, *images.notes, *_note_precision(trained, model)),
    )


def _check_fits(asked: AskedEdit, model: ModelPlan, problems: Problems) -> None:
    """Record what the flavour or the adapter cannot do."""
    flavour, count = model.flavour, 1 + len(asked.references)
    limits = [limit for limit in (flavour.max_references, flavour.pipeline_references) if limit is not None]
    if flavour.max_references == 0:
        problems.add(f"model_flavour {flavour.name!r} takes no reference images, so it cannot edit --image")
    elif count > min(limits):
        problems.add(
            f"--reference: with --image these are {count} references, and the pipeline of model_flavour "
            f"{flavour.name!r} takes {min(limits)}"
        )
    changed = [strength for strength in asked.strengths if strength != 1]
    fixed = type(model.adapter).at_strength is Adapter.at_strength and not model.adapter.trains_base
    if (changed or asked.compares_base) and fixed:
        problems.add(
            f"--strength and --compare: adapters of lora_type {model.adapter.name!r} have no strength that can be "
            "changed; leave both out"
        )


def _scenes(images: ImagesToEdit, model: ModelPlan) -> list[Scene]:
    """Return what to draw; images come to the size of validation, at their own aspect."""
    multiple = model.family.pixel_multiple
    size = model.config.validation_size
    rules = GeometryRules(
        resolution=math.sqrt(size[0] * size[1]),
        resolution_type="pixel_area",
        alignment=math.lcm(model.config.aspect_bucket_alignment, multiple),
    )
    others = tuple(_placed(record, rules) for record in images.references)
    scenes = []
    for image in images.images:
        first = _placed(image.record, rules)
        width, height = first.geometry.bucket
        scenes.append(
            Scene(
                name=image.record.key,
                prompt=image.prompt,
                references=(first, *others),
                target=_placed_target(image.target, first, rules) if image.target else None,
                size=size_to_draw(size, width / height, multiple),
            )
        )
    return with_files_of_their_own(scenes, 1)


def _placed(record: ImageRecord, rules: GeometryRules) -> PlacedImage:
    return PlacedImage(record=record, geometry=assign_bucket(record.size, rules))


def _placed_target(target: ImageRecord, image: PlacedImage, rules: GeometryRules) -> PlacedImage:
    """Return the target cut like the image if it has its size, so that their pixels stay aligned."""
    same = target.size == image.record.size
    return PlacedImage(record=target, geometry=image.geometry) if same else _placed(target, rules)


def _variants(asked: AskedEdit, adapter: FoundAdapter) -> Iterator[Variant]:
    if asked.compares_base or 0 in asked.strengths:
        label = "base" if 0 not in asked.strengths else "base, strength 0"
        yield Variant(strength=0, weights=None, label=label, name="base")
    many = len(adapter.weights) > 1
    for place, weights in enumerate(adapter.weights):
        for strength in asked.strengths:
            if strength:
                label = f"strength {strength:g}"
                yield Variant(
                    strength=strength,
                    weights=place,
                    label=f"{weights.name}, {label}" if many else label,
                    name=(f"{weights.name.replace(' ', '-')}-" if many else "") + label.replace(" ", "-"),
                )


def _new_folder(home: Path) -> Path:
    """Return a folder that does not exist, so that no edit replaces another."""
    number = 1
    while (home / f"edit-{number}").exists():
        number += 1
    return home / f"edit-{number}"


def _note_precision(trained: str | None, model: ModelPlan) -> list[str]:
    used = model.config.base_model_precision
    if trained is None:
        return [f"nothing says on which base_model_precision the adapter was trained; it is used on {used}"]
    if trained == used:
        return []
    return [
        f"the adapter was trained on base_model_precision {trained} and is used on {used}; "
        "it works best on what it was trained on"
    ]
