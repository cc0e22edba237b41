"""Shared code for families with models in diffusers layout: finds the files and reports what is wrong with them.

Light: no torch. A family may work in other ways; nothing in the core requires this layout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difftrain.contracts import ModelFlavour
from difftrain.errors import ModelError
from difftrain.model.diffusers_folder import INDEX, SCHEDULER, check_complete, config_name, fingerprint, read_json
from difftrain.model.hub import fetch_components, fetch_files, find_snapshot
from difftrain.types import ModelLocation

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
Configs = Mapping[str, Mapping[str, Any]]
"""The small config file of each component by name, empty for tokenizers; the pipeline's own is "model_index"."""


@dataclass(frozen=True, kw_only=True)
class DiffusersFiles:
    """The files of a family's models: a local folder in diffusers layout, or a hub repository that is one."""

    weighted: tuple[str, ...]
    """Components with weights: folders with a config.json and safetensors files."""
    others: tuple[str, ...] = ("scheduler",)
    """Components without weights: schedulers, tokenizers, processors."""
    needed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys that the configs of these components must have, see :func:`check_complete`."""

    @property
    def components(self) -> tuple[str, ...]:
        return self.weighted + self.others

    def locate(
        self, name: str | None, flavour: ModelFlavour, examine: Callable[[str, Configs], Mapping[str, str]]
    ) -> ModelLocation:
        """Return the result for :meth:`ModelFamily.locate`. A folder wins over a hub id of the same spelling.

        Args:
            name: A folder, a hub id, or None for the flavour's.
            examine: Gets the model's name for messages and the components' configs; raises ModelError if the family
                cannot be these; returns facts in addition to the pipeline's class, such as {"distilled": "true"}.

        Raises:
            ModelError: If the model does not exist or is another one, or parts of it are missing or damaged.
        """
        name = name or flavour.hub_id
        path = os.path.expanduser(name)  # noqa: PTH111  # these raise nothing, unlike Path's: a name may be too long
        if os.path.isdir(path):  # noqa: PTH112
            try:
                return self._in_folder(name, Path(path).resolve(), examine)
            except OSError as error:
                raise ModelError(
                    f"model folder {path} cannot be read: {error}\n"
                    "hint: make its folders and files readable for the user that trains, or name a copy"
                ) from error
        if os.path.isfile(path) or not HUB_ID.fullmatch(name):  # noqa: PTH113
            raise ModelError(
                f"model {name!r} is neither a folder in diffusers layout nor a hub id (owner/name)\n"
                f"hint: the {flavour.name} weights are {flavour.hub_id}; write that, or a local diffusers folder"
            )
        snapshot = find_snapshot(name, flavour, self._small_files())
        facts = self._facts(f"hub model {name!r}", snapshot, examine, complete=False)
        identity = f"{name}@{snapshot.name}"
        return ModelLocation(name=name, identity=identity, path=None, revision=snapshot.name, facts=facts)

    def folder(self, location: ModelLocation, *components: str) -> Path:
        """Return the local folder with these components; download them if necessary."""
        return location.path or fetch_components(location, components)

    def config(self, location: ModelLocation, component: str) -> dict[str, Any]:
        """Return the small config file of a component without downloading weights."""
        root = location.path or fetch_files(location, self._small_files())
        return read_json(root / component / config_name(component))

    def identity(self, location: ModelLocation, *components: str) -> str:
        """Return the content hash of the given components only; for a hub model, its whole revision."""
        return location.identity if location.path is None else fingerprint(location.path, components)

    def _small_files(self) -> list[str]:
        return [INDEX, *(f"{name}/{config_name(name)}" for name in self.components)]

    def _in_folder(
        self, name: str, folder: Path, examine: Callable[[str, Configs], Mapping[str, str]]
    ) -> ModelLocation:
        facts = self._facts(f"model folder {folder}", folder, examine, complete=True)
        return ModelLocation(name=name, identity=fingerprint(folder, self.components), path=folder, facts=facts)

    def _facts(
        self, where: str, folder: Path, examine: Callable[[str, Configs], Mapping[str, str]], *, complete: bool
    ) -> dict[str, str]:
        index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
        pipeline = str(index.get("_class_name", "model of unknown class"))
        # another model has other components, so report that rather than missing ones
        if index and (absent := [name for name in self.components if name not in index]):
            raise ModelError(
                f"{where} is a {pipeline} without {', '.join(absent)}, so it is another model\n"
                "hint: name weights of the flavour, or set model_family to the family of these (`difftrain plugins`)"
            )
        if complete:
            check_complete(folder, self.components, self.weighted, self.needed)
        files = {name: folder / name / config_name(name) for name in self.components}
        described = [name for name in self.components if name in self.weighted or name == SCHEDULER]
        if missing := [f"{name}/{config_name(name)}" for name in described if not files[name].is_file()]:
            raise ModelError(f"{where} has no {', '.join(missing)}, so it is not a complete model in diffusers layout")
        configs = {"model_index": index} | {name: read_json(file) for name, file in files.items() if file.is_file()}
        return ({"pipeline": pipeline} if index else {}) | dict(examine(where, configs))
