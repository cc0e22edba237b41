"""What a file or folder is, from names, shapes and header. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difftrain.contracts import ModelFamily
from difftrain.errors import ConfigError, ModelError
from difftrain.exporting.adapter_source import adapter_file, families_with, saved_config, whole_model_in
from difftrain.model.adapter_files.describe_adapter import AdapterFacts, describe_adapter
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.flavour_match import likely_flavours
from difftrain.model.shards import weight_files
from difftrain.model.single_files.file_kinds import kind_of, quantised_as
from difftrain.model.single_files.safetensors_header import FileHeader, read_header
from difftrain.plugins.discovery import LoadedPlugins
from difftrain.types import ModelLocation


@dataclass(kw_only=True)
class Identified:
    """What a file or folder is."""

    path: str
    what: str
    family: str | None = None
    flavours: list[str] = field(default_factory=list)
    """Those that it may belong to; one if that is certain or very likely."""
    step_distilled: bool | None = None
    """Whether all of these flavours are; None if they are not known."""
    adapter: AdapterFacts | None = None
    dtypes: Mapping[str, int] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    """What speaks for it, or what was seen of something unknown."""


def identified(path: Path, plugins: LoadedPlugins) -> Identified:
    """Return what a file or folder is.

    Raises:
        ModelError: If a file is not safetensors, or damaged; says what it is.
    """
    if path.is_file():
        return _of_file(path, plugins)
    refused: list[str] = []
    if (trained := whole_model_in(path)) is not None:
        return _of_trained_model(path, trained, plugins)
    if (path / "model_index.json").is_file() or (path / "config.json").is_file():
        for family in _families(plugins):
            found = _of_model(path, family, plugins, refused) or _of_denoiser(path, family, plugins, refused)
            if found is not None:
                return found
        if len(files := list(path.glob("*.safetensors"))) == 1:  # a part of a model alone
            return _of_file(files[0], plugins)
    else:
        try:
            file = adapter_file(path)
        except ConfigError as error:
            refused.append(str(error).partition("\n")[0])
        else:
            return _of_file(file, plugins)
    inside = sorted(entry.name for entry in path.iterdir())
    return Identified(
        path=str(path),
        what="a folder that is not known here",
        seen=[*refused, f"it has {', '.join(inside[:8]) or 'nothing'}"],
    )


def _of_file(path: Path, plugins: LoadedPlugins) -> Identified:
    header = read_header(path)
    fitting = families_with(list(header.tensors), plugins)
    names = LayerNames(fitting[0]) if fitting else None
    prefix = next((family.lora_prefix for family in plugins.registry.classes("family")), "")
    adapter = describe_adapter(header, names, prefix)
    dtypes = dict(Counter(entry.dtype for entry in header.tensors.values()))
    if adapter is not None:
        found = Identified(path=str(path), what=f"an adapter: {adapter.line()}", adapter=adapter, dtypes=dtypes)
        if fitting:
            _add_flavours_of_adapter(found, fitting[0], path, plugins)
        else:
            found.seen.append("no installed family has its layers")
        return found
    refused: list[str] = []
    for family in _families(plugins):
        model = _of_single_file(path, family, plugins, refused)
        if model is not None:
            model.dtypes = dtypes
            return model
    return _unknown(path, header, dtypes, refused)


def _unknown(path: Path, header: FileHeader, dtypes: Mapping[str, int], refused: list[str]) -> Identified:
    kind, quantised = kind_of(header.tensors), quantised_as(header.tensors)
    what = kind or (f"weights quantised as {quantised}" if quantised else "not known")
    shapes = [f"{name} {list(entry.shape)}" for name, entry in list(header.tensors.items())[:4]]
    seen = [f"{len(header.tensors)} tensors: {', '.join(shapes) or 'none'}"]
    seen += [f"header: {', '.join(sorted(header.texts)[:8])}"] if header.texts else []
    return Identified(path=str(path), what=what, dtypes=dtypes, seen=[*(refused if not kind else []), *seen])


def _add_flavours_of_adapter(found: Identified, family: type[ModelFamily], path: Path, plugins: LoadedPlugins) -> None:
    """Add what a run recorded beside its file, or the header says; all flavours of a family have the same layers."""
    found.family = family.name
    flavours = plugins.registry.flavours(family.name)
    saved = saved_config(path.parent)
    if saved is not None and saved.get("model_flavour") in flavours:
        found.flavours = [str(saved["model_flavour"])]
        found.seen.append("the run's checkpoint beside it names the flavour")
    else:
        said_by_header = (found.adapter.base, found.adapter.architecture) if found.adapter else ()
        origins = tuple(text for text in said_by_header if text)
        said = ModelLocation(name="", identity="", path=path, facts={}, origins=origins)
        found.flavours = list(likely_flavours(said, flavours))
        if len(found.flavours) > 1:
            found.seen.append("adapters of all these flavours have the same names and shapes")
    _add_distillation(found, plugins)


def _of_single_file(path: Path, family: ModelFamily, plugins: LoadedPlugins, refused: list[str]) -> Identified | None:
    try:
        location = family.identify_file(path)
    except ModelError as error:
        refused.append(str(error).partition("\n")[0])
        return None
    return (
        None if location is None else _model(path, "the weights of a denoiser in one file", location, family, plugins)
    )


def _of_model(path: Path, family: ModelFamily, plugins: LoadedPlugins, refused: list[str]) -> Identified | None:
    flavours = plugins.registry.flavours(family.name)
    try:
        location = family.locate(str(path), next(iter(flavours.values()))())
    except (ModelError, StopIteration) as error:
        refused.append(str(error).partition("\n")[0])
        return None
    return _model(path, "a model in diffusers layout", location, family, plugins)


def _of_denoiser(path: Path, family: ModelFamily, plugins: LoadedPlugins, refused: list[str]) -> Identified | None:
    """Return what the folder of a denoiser alone is; None if it is another part of a model, or another family's."""
    try:
        location = family.identify_folder(path)
    except ModelError as error:
        refused.append(str(error).partition("\n")[0])
        return None
    if location is None:
        return None
    files = weight_files(path)
    found = _model(path, f"a denoiser in diffusers layout, in {_count(files)}", location, family, plugins)
    found.dtypes = dict(Counter(entry.dtype for file in files for entry in read_header(file).tensors.values()))
    texts = read_header(files[0]).texts
    said = {"trained_with": "trained with", "training.steps": "steps", "base_model": "trained from"}
    found.seen += [f"{name} {texts[key]}" for key, name in said.items() if key in texts]
    return found


def _count(files: list[Path]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files)} files"


def _of_trained_model(path: Path, trained: Path, plugins: LoadedPlugins) -> Identified:
    """Return what the model of a run is, with the flavour that the run recorded."""
    refused: list[str] = []
    for family in _families(plugins):
        if family.lora_prefix == trained.name and (found := _of_denoiser(trained, family, plugins, refused)):
            found.path = str(path)
            found.what = f"the results of a run that trained the whole denoiser: {trained.name}, {found.what}"
            flavour = (saved_config(trained.parent) or {}).get("model_flavour")
            if flavour in plugins.registry.flavours(family.name):
                found.flavours = [str(flavour)]
                found.seen.append("the run's checkpoint names the flavour")
                _add_distillation(found, plugins)
            return found
    return Identified(path=str(path), what="the results of a run, of a model that is not known here", seen=refused)


def _model(path: Path, what: str, location: ModelLocation, family: ModelFamily, plugins: LoadedPlugins) -> Identified:
    found = Identified(path=str(path), what=what, family=family.name)
    found.flavours = list(likely_flavours(location, plugins.registry.flavours(family.name)))
    found.seen = [f"{key}: {value}" for key, value in (location.facts or {}).items()]
    found.seen += [f"made from {origin}" for origin in location.origins]
    _add_distillation(found, plugins)
    return found


def _add_distillation(found: Identified, plugins: LoadedPlugins) -> None:
    if found.family and found.flavours:
        flavours = plugins.registry.flavours(found.family)
        distilled = {flavours[name].distilled_from is not None for name in found.flavours}
        found.step_distilled = distilled.pop() if len(distilled) == 1 else None


def _families(plugins: LoadedPlugins) -> list[ModelFamily]:
    return [family() for family in plugins.registry.classes("family")]
