"""What is exported: the adapter file of a run, a checkpoint or any program, its family, and the model it was made for.

Imports no torch.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from difftrain.checkpoints.resume_state import STATE_FILE, WEIGHTS_FILE
from difftrain.config.messages import explain
from difftrain.config.problems import Problems
from difftrain.contracts import ModelFamily
from difftrain.errors import ConfigError, first_few
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.tensor_names import is_of_encoder, split_name
from difftrain.model.low_rank.lora_file import ADAPTER_FILE
from difftrain.model.shards import weight_files
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.model.whole_model.write_model import CONFIG_FILE
from difftrain.output.output_dir import RESUME_FOLDER, list_checkpoints
from difftrain.planning.model_plan import Chooser, ModelPlan
from difftrain.plugins.discovery import LoadedPlugins

LYCORIS_FILE = "lycoris_config.json"


@dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """An adapter file and what is known about its model."""

    file: Path
    family: ModelFamily | type[ModelFamily]
    plan: ModelPlan | None
    """The model that it was trained on; None if only the file is known."""
    trained: Path | None = None
    """The weights as the run trained them, from the checkpoint that has the same file; None if there is none."""
    whole: Path | None = None
    """The folder of the model, if the run trained it as a whole; `file` is then the first with its weights."""


def find_source(path: Path, plugins: LoadedPlugins, named: ModelPlan | None) -> AdapterSource:
    """Return the adapter that a path names: the newest of a run's folder, that of a checkpoint, or a file.

    Args:
        named: The model that the command line names; it wins over what the run recorded.

    Raises:
        ConfigError: If there is no adapter, or nothing says which model it is for.
        ModelError: If the file is not safetensors, or damaged.
    """
    if (whole := whole_model_in(path)) is not None:
        saved = saved_config(whole.parent)
        assert saved is not None, "whole_model_in has read it"
        file = weight_files(whole)[0]
        known = named or _plan_of(saved, file, plugins)
        return AdapterSource(file=file, family=known.family, plan=known, whole=whole)
    file = adapter_file(path)
    saved = saved_config(file.parent)
    plan = named
    if plan is None and saved is not None:
        plan = _plan_of(saved, file, plugins)
    if plan is not None:
        trained = _trained_weights(file) if named is None else None
        return AdapterSource(file=file, family=plan.family, plan=plan, trained=trained)
    return AdapterSource(file=file, family=_family_of(file, plugins), plan=None)


def whole_model_in(path: Path) -> Path | None:
    """Return the folder of the model that a run has trained as a whole; None if the path is of no such run.

    Args:
        path: A run's output folder, a checkpoint, or the folder of the model in one of them.
    """
    if not path.is_dir():
        return None
    folders = [path] if (path / CONFIG_FILE).is_file() else []
    for home in (path, *list_checkpoints(path)[-1:]):
        folders += [config.parent for config in sorted(home.glob(f"*/{CONFIG_FILE}"))]
    for folder in folders:
        saved = saved_config(folder.parent)
        if saved is not None and saved.get("model_type", "lora") != "lora":
            return folder
    return None


def adapter_file(path: Path) -> Path:
    """Return the adapter that a path names: a file, the newest one of a run's folder, or that of a checkpoint.

    Raises:
        ConfigError: If there is none, or several.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise ConfigError(f"{path} does not exist\nhint: name a run's output folder, a checkpoint or a file")
    newest = list_checkpoints(path)[-1:]
    for folder in (path, *newest):
        if (folder / ADAPTER_FILE).is_file():
            return folder / ADAPTER_FILE
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if len(others) == 1:
        return path / others[0]
    has = f"it has {first_few(others)}; name one of them" if others else "name a run's output folder, or a file"
    raise ConfigError(f"{path} has no {ADAPTER_FILE} and no checkpoint\nhint: {has}")


def _trained_weights(file: Path) -> Path | None:
    """Return the trained weights that were written as this file; a run's folder may hold another step's."""
    for checkpoint in (file.parent, *reversed(list_checkpoints(file.parent))):
        weights, written = checkpoint / RESUME_FOLDER / WEIGHTS_FILE, checkpoint / file.name
        if weights.is_file() and written.is_file() and filecmp.cmp(written, file, shallow=False):
            return weights
    return None


def saved_config(folder: Path) -> Mapping[str, Any] | None:
    """Return the config that the newest checkpoint beside a file recorded; None if there is none."""
    for checkpoint in (folder, *reversed(list_checkpoints(folder))):
        state = checkpoint / RESUME_FOLDER / STATE_FILE
        if state.is_file():
            try:
                found = json.loads(state.read_text(encoding="utf-8"))["config"]
            except (OSError, ValueError, LookupError, TypeError):
                continue
            return found if isinstance(found, dict) else None
    return None


def _plan_of(saved: Mapping[str, Any], file: Path, plugins: LoadedPlugins) -> ModelPlan:
    """Return the model of a run, whose adapter's own files are those beside the weights.

    Raises:
        ConfigError: If this version cannot read the options, or a plugin is missing.
    """
    beside = file.parent / LYCORIS_FILE
    known = {key: value for key, value in saved.items() if key in plugins.run_schema.model_fields}
    known |= {"init_lora": None} if "init_lora" in known else {}
    known |= {"lycoris_config": str(beside)} if "lycoris_config" in known and beside.is_file() else {}
    problems = Problems()
    try:
        config = plugins.run_schema.model_validate_json(json.dumps(known))
    except ValidationError as error:
        found = "; ".join(explain(error, known).values())
        raise ConfigError(
            f"the options recorded beside {file} cannot be read: {found}\n"
            "hint: name the model yourself: --model FAMILY --flavour NAME --pretrained_model_name_or_path MODEL"
        ) from error
    chosen = Chooser(config=config, registry=plugins.registry, problems=problems)
    family, flavour, adapter = chosen.family(), chosen.flavour(), chosen.adapter()
    problems.raise_all()
    return ModelPlan(
        config=config, family=family, flavour=flavour, adapter=adapter, quantizer=None, plugins=plugins, notes=()
    )


def _family_of(file: Path, plugins: LoadedPlugins) -> type[ModelFamily]:
    """Return the family that has all layers of a file.

    Raises:
        ConfigError: If none has, or several.
    """
    fitting = families_with(list(read_header(file).tensors), plugins)
    if len(fitting) != 1:
        why = "no installed family has its layers" if not fitting else "several families have its layers"
        raise ConfigError(
            f"{file}: {why}\nhint: `difftrain identify {file}` says what it is; name its model with --model FAMILY"
        )
    return fitting[0]


def families_with(tensors: list[str], plugins: LoadedPlugins) -> list[type[ModelFamily]]:
    """Return the families that have every layer that tensors of these names change."""
    fitting = []
    for name, family in plugins.registry.all("family").items():
        parts = [split_name(tensor, family.lora_prefix) for tensor in tensors if not is_of_encoder(tensor)]
        layers = {part.layer for part in parts if part is not None}
        names = LayerNames(family)
        if layers and name == family.name and all(names.find(layer) is not None for layer in layers):
            fitting.append(family)
    return fitting
