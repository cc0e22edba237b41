"""Folders in diffusers layout: checks completeness, reads the small files, hashes the content.

Light: no torch. Families use it in `locate`; :class:`difftrain.model.diffusers_files.DiffusersFiles` combines it all.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from difftrain.errors import ModelError
from difftrain.model.single_files.safetensors_header import raw_header

INDEX = "model_index.json"
SCHEDULER = "scheduler"
EDGE_BYTES = 1 << 20
_COMPLETE = "diffusers' `save_pretrained` and `hf download REPO --local-dir` write complete folders"


def config_name(component: str) -> str:
    """Return the small file that describes a component."""
    return "scheduler_config.json" if component == SCHEDULER else "config.json"


def check_complete(
    folder: Path, components: Collection[str], weighted: Collection[str], needed: Mapping[str, Collection[str]]
) -> None:
    """Check that every component is complete before anything is loaded.

    Args:
        components: Names of all components.
        weighted: Components that have a config and safetensors files.
        needed: Keys that a component's config must have. For missing keys the stock classes use their own defaults, and
        then the weights do not fit, or images are drawn differently.

    Raises:
        ModelError: Names every missing component or file.
    """
    found = {
        name: list(_problems(folder / name, weighted=name in weighted, needed=needed.get(name, ())))
        for name in components
    }
    wrong = {name: problems for name, problems in found.items() if problems}
    if not wrong:
        return
    if len(components) == 1 and all((folder / name).is_dir() for name in wrong):  # the folder of a part was named
        ((name, problems),) = wrong.items()
        raise ModelError(f"{folder / name} cannot be used: {', '.join(problems)}\nhint: {_COMPLETE}")
    listed = "; ".join(f"{name} ({problem})" for name, problems in wrong.items() for problem in problems)
    raise ModelError(
        f"model folder {folder}: {len(wrong)} of {len(components)} parts cannot be used: {listed}\n"
        f"hint: {_incomplete_hint(folder)}"
    )


def fingerprint(folder: Path, components: Iterable[str]) -> str:
    """Return a sha256 over the small files of components and, of each weight file, header, size, first and last MiB.

    Reads a few MiB of a 30 GB model; a change only in the middle of a weight file goes unnoticed.

    Raises:
        ModelError: If a weight file is not safetensors, or is cut short.
    """
    digest = hashlib.sha256()
    for component in components:
        for path in _content_files(folder / component):
            name = path.relative_to(folder).as_posix().encode()
            digest.update(struct.pack("<q", len(name)) + name)
            for part in _weight_parts(path) if path.suffix == ".safetensors" else (path.read_bytes(),):
                digest.update(struct.pack("<q", len(part)) + part)
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """Return a sha256 over header, size, first and last MiB of one safetensors file.

    Raises:
        ModelError: As :func:`fingerprint`.
    """
    digest = hashlib.sha256()
    for part in _weight_parts(path):
        digest.update(struct.pack("<q", len(part)) + part)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return one of a model's small config files.

    Raises:
        ModelError: If it is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error})\nhint: download or save it again") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}\nhint: download or save it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must be a JSON object, got {type(content).__name__}")
    return content


def _incomplete_hint(folder: Path) -> str:
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    if snapshots:
        return f"this folder belongs to the hub's cache; name the snapshot in it: {snapshots[-1]}"
    single = sorted(path.name for path in folder.glob("*.safetensors"))
    return (
        f'{single[0]} is a single-file checkpoint; write "pretrained_transformer_model_name_or_path": '
        f'"{folder / single[0]}", and name the folder or hub id of the other parts here'
        if single and not (folder / INDEX).exists()
        else _COMPLETE
    )


def _problems(component: Path, *, weighted: bool, needed: Collection[str]) -> Iterator[str]:
    name = component.name
    if not component.is_dir():
        yield "no such folder"
        return
    if weighted or name == SCHEDULER:
        yield from _config_problems(component / config_name(name), needed)
    if weighted:
        missing = [file.name for file in _weight_files(component) if not file.is_file()]
        if missing:
            yield f"no {', '.join(missing)}"
    elif name != SCHEDULER and not any(component.iterdir()):
        yield "empty folder"


def _config_problems(config: Path, needed: Collection[str]) -> Iterator[str]:
    if not config.is_file():
        yield f"no {config.name}"
        return
    said = read_json(config)
    missing = [key for key in needed if said.get(key) is None]
    if missing:
        yield f"{config.name} has no {', '.join(missing)}"


def _weight_files(component: Path) -> list[Path]:
    """Return the weight files that a component should have: all shards of its index, else any, else the usual name."""
    for index in sorted(component.glob("*.safetensors.index.json")):
        shards = read_json(index).get("weight_map", {})
        return [component / shard for shard in sorted(set(shards.values()))]
    return sorted(component.glob("*.safetensors")) or [component / "*.safetensors"]


def _content_files(component: Path) -> list[Path]:
    endings = (".json", ".txt", ".model", ".safetensors")
    return sorted(path for path in component.iterdir() if path.suffix in endings and path.is_file())


def _weight_parts(path: Path) -> Iterator[bytes]:
    """Yield size, header, first and last MiB of a safetensors file."""
    size = path.stat().st_size
    yield str(size).encode()
    yield raw_header(path)
    with path.open("rb") as file:
        yield file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        yield file.read(EDGE_BYTES)
