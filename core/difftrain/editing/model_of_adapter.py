"""The model that an adapter is for: as its run recorded it, as its file says, or as the flags name it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difftrain.config.config_files import ConfigFile, FlagValue, find_run_file, plugin_switches
from difftrain.config.problems import Problems
from difftrain.contracts import Adapter
from difftrain.editing.find_adapter import FoundAdapter
from difftrain.errors import CheckpointError, printable
from difftrain.model.adapter_files.describe_adapter import what_is
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.planning.model_plan import ModelPlan, plan_model
from difftrain.plugins.discovery import LoadedPlugins, load_plugins
from difftrain.plugins.registry import Registry

PRECISION_ENTRY = "base_model_precision"
"""Entry of an adapter file's header that names the number format of the frozen weights in training."""
_SAID_BY_HEADER = {PRECISION_ENTRY: PRECISION_ENTRY, "mixed_precision": "training.mixed_precision"}
"""Options that a file without its run may state in its header, and under which names."""


def model_of(
    found: FoundAdapter,
    flags: Mapping[str, FlagValue],
    config: Path | None,
    plugins: LoadedPlugins,
    problems: Problems,
) -> ModelPlan:
    """Plan the model that the weights were trained on, as their run recorded it, with the flags over it.

    Args:
        config: A run file to use instead of what the run recorded.
        plugins: Those of the command line; a run that names others loads its own.

    Raises:
        DifftrainError: With every problem found.
    """
    file = find_run_file(config) if config is not None else None
    recorded = dict(file.content) if file is not None else dict(found.config or {})
    alone = not recorded
    if recorded and config is None:
        files, disabled = plugin_switches(ConfigFile(path=None, content=recorded, lines={}), flags)
        if files or disabled:
            plugins = load_plugins(files=files, disabled=disabled)
    content = recorded or _said_by_header(found, plugins.registry)
    if file is None:
        content = _still_known(content, plugins, problems)
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


def _still_known(content: Mapping[str, Any], plugins: LoadedPlugins, problems: Problems) -> dict[str, Any]:
    """Return the recorded options that exist; a plugin may have left since."""
    known = plugins.run_schema.model_fields
    gone = sorted(key for key in content if key not in known and content[key] is not None)
    if gone:
        problems.note(f"options of the run that no plugin has any more are left out: {', '.join(gone)}")
    return {key: value for key, value in content.items() if key in known}


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
    whole = content.get("model_type", "lora") != "lora"
    named = content["model_type"] if whole else flags.get("lora_type", content.get("lora_type"))
    candidates = {name: kind for name, kind in kinds.items() if named in (None, name) and kind.trains_base == whole}
    paths = [weights.path for weights in found.weights]
    for name, kind in candidates.items():
        options = [kind.options_to_use(path, prefix, alone=alone) for path in paths]
        if _same(options):
            return {"model_type" if whole else "lora_type": name, **(options[-1] or {})}
    raise CheckpointError(
        f"--adapter {printable(paths[0])} holds no adapter "
        f"{'that edit can use' if alone or named is None else f'of lora_type {named!r}'}"
        f"{': it is ' + what_is(paths[0], prefix) if paths[0].is_file() else ''}\n"
        "hint: name weights that difftrain or diffusers wrote; of an adapter of another program `difftrain export FILE "
        "--output NEW.safetensors` makes such a file"
    )


def _same(options: Sequence[Mapping[str, object] | None]) -> bool:
    """Return whether all files can be used with one set of options, apart from where their descriptions are."""
    if any(one is None for one in options):
        return False
    bare = [{k: v for k, v in (one or {}).items() if not isinstance(v, str)} for one in options]
    return all(one == bare[0] for one in bare)


def trained_precision(adapter: FoundAdapter) -> str | None:
    """Return ``base_model_precision`` in training; None if nothing says."""
    if adapter.config is not None:
        found = adapter.config.get(PRECISION_ENTRY)
        return None if found is None else str(found)
    return _texts(adapter).get(PRECISION_ENTRY)
