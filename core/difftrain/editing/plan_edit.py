"""The plan of an edit: adapter, model, images and grid, all checked before a model is loaded. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftrain.config.config_files import ConfigFile, FlagValue, find_run_file, plugin_switches
from difftrain.config.problems import Problems
from difftrain.contracts import Adapter
from difftrain.data.buckets import assign_bucket
from difftrain.editing.asked_edit import AskedEdit, read_asked
from difftrain.editing.find_adapter import FoundAdapter, find_adapter
from difftrain.editing.images_to_edit import ImagesToEdit, find_images
from difftrain.errors import CheckpointError, printable
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.planning.model_plan import ModelPlan, plan_model
from difftrain.plugins.discovery import LoadedPlugins, load_plugins
from difftrain.plugins.registry import Registry
from difftrain.types import GeometryRules, ImageRecord, PlacedImage, Reporter
from difftrain.validation.scenes import Scene, size_to_draw, with_files_of_their_own

EDITS_FOLDER = "edits"
PRECISION_ENTRY = "base_model_precision"
"""Entry of an adapter file's header that names the number format of the frozen weights in training."""
_SAID_BY_HEADER = {PRECISION_ENTRY: PRECISION_ENTRY, "mixed_precision": "training.mixed_precision"}
"""Options that a file without its run may state in its header, and under which names."""


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
            model = _plan_model(adapter, flags, config, plugins, problems)
    if asked is not None and model is not None:
        _check_fits(asked, model, problems)
    problems.raise_all()
    assert asked is not None and images is not None, "nothing is missing without a problem"  # noqa: PT018
    assert adapter is not None and model is not None, "nothing is missing without a problem"  # noqa: PT018
    trained = _trained_precision(adapter)
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


def _plan_model(
    found: FoundAdapter,
    flags: Mapping[str, FlagValue],
    config: Path | None,
    plugins: LoadedPlugins,
    problems: Problems,
) -> ModelPlan:
    """Plan the model that the weights were trained on, as their run recorded it, with the flags over it."""
    file = find_run_file(config) if config is not None else None
    recorded = dict(file.content) if file is not None else dict(found.config or {})
    alone = not recorded
    if recorded and config is None:
        files, disabled = plugin_switches(ConfigFile(path=None, content=recorded, lines={}), flags)
        if files or disabled:
            plugins = load_plugins(files=files, disabled=disabled)
    content = recorded or _said_by_header(found, plugins.registry)
    known = plugins.run_schema.model_fields
    gone = [] if file is not None else sorted(key for key in content if key not in known and content[key] is not None)
    if gone:
        problems.note(f"options of the run that no plugin has any more are left out: {', '.join(gone)}")
    if file is None:
        content = {key: value for key, value in content.items() if key in known}
    content |= _options_to_use(found, content, flags, plugins.registry, alone=alone)
    if alone and not {"model_family", "model"} & {*content, *flags}:
        problems.add(
            f"--adapter {printable(found.weights[0].path)}: there is no run beside this file that says which "
            "model it is for\nhint: name it: --model FAMILY --flavour NAME, and --pretrained_model_name_or_path for "
            "your own copy"
        )
        problems.raise_all()
    place = file.path if file is not None else found.recorded_in
    return plan_model(ConfigFile(path=place, content=content, lines={}), flags, plugins=plugins)


def _said_by_header(found: FoundAdapter, registry: Registry) -> dict[str, Any]:
    """Return the options that a file states about itself: precision, and the model if its hub id is a flavour's."""
    texts = _texts(found)
    said: dict[str, Any] = {key: texts[entry] for key, entry in _SAID_BY_HEADER.items() if entry in texts}
    for flavour in registry.classes("flavour"):
        if flavour.hub_id == texts.get("base_model"):
            said |= {"model_family": flavour.family, "model_flavour": flavour.name}
    return said


def _texts(found: FoundAdapter) -> Mapping[str, str]:
    path = found.weights[0].path
    return read_header(path).texts if path.is_file() else {}


def _options_to_use(
    found: FoundAdapter,
    content: Mapping[str, Any],
    flags: Mapping[str, FlagValue],
    registry: Registry,
    *,
    alone: bool,
) -> dict[str, Any]:
    """Return the options of the adapter with which its files act as they were saved.

    Raises:
        CheckpointError: If a file is no adapter, or of another kind than its run's.
    """
    family = flags.get("model_family", flags.get("model", content.get("model_family")))
    families: dict[str, Any] = registry.all("family")
    prefix = families[str(family)].lora_prefix if str(family) in families else "transformer"
    kinds: dict[str, type[Adapter]] = registry.all("adapter")
    named = flags.get("lora_type", content.get("lora_type"))
    candidates = {name: kind for name, kind in kinds.items() if named in (None, name)}
    paths = [weights.path for weights in found.weights]
    for name, kind in candidates.items():
        options = [kind.options_to_use(path, prefix, alone=alone) for path in paths]
        if _same(options):
            return {"lora_type": name, **(options[-1] or {})}
    raise CheckpointError(
        f"--adapter {printable(paths[0])} holds no adapter "
        f"{'that difftrain can use' if alone or named is None else f'of lora_type {named!r}'}\n"
        "hint: name weights that difftrain or diffusers wrote, of LoRA or LyCORIS"
    )


def _same(options: Sequence[Mapping[str, object] | None]) -> bool:
    """Return whether all files can be used with one set of options, apart from where their descriptions are."""
    if any(one is None for one in options):
        return False
    bare = [{k: v for k, v in (one or {}).items() if not isinstance(v, str)} for one in options]
    return all(one == bare[0] for one in bare)


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
    if (changed or asked.compares_base) and type(model.adapter).at_strength is Adapter.at_strength:
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


def _trained_precision(adapter: FoundAdapter) -> str | None:
    if adapter.config is not None:
        found = adapter.config.get(PRECISION_ENTRY)
        return None if found is None else str(found)
    return _texts(adapter).get(PRECISION_ENTRY)


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
