"""Finds a model's files without loading a weight: a built-in one, a local diffusers folder, a hub id.

Light: no torch. `folder.py` says what a folder must contain.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from difftrain import ModelError, ModelFlavour, ModelLocation, find_snapshot, fingerprint
from difftrain_flux.built_in import (
    BUILT_IN,
    OFFLINE,
    TINY,
    TINY_FOLDER,
    TINY_RANDOM,
    TINY_RANDOM_IDENTITY,
    tiny_random_folder,
)
from difftrain_flux.model_files import folder
from difftrain_flux.model_files.identify import SMALL_FILES, check_hub_id

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def locate(model: str | None, flavour: ModelFlavour) -> ModelLocation:
    """Find where the model is and identify its content.

    The built-in names ``tiny`` and ``tiny-random`` win over a folder of that name; write ``./tiny`` for the folder. A
    folder wins over a hub id of the same spelling.

    Raises:
        ModelError: If the model does not exist, cannot be reached, or parts of it are missing.
    """
    name = model or flavour.hub_id
    if name == TINY_RANDOM:
        return ModelLocation(name=name, identity=TINY_RANDOM_IDENTITY, path=tiny_random_folder())
    path = TINY_FOLDER if name == TINY else Path(os.path.expanduser(name))  # noqa: PTH111  # these raise nothing,
    if os.path.isdir(path):  # noqa: PTH112  # unlike Path's: a name may be too long for a disk
        return _in_folder(name, path)
    if os.path.isfile(path):  # noqa: PTH113
        raise ModelError(
            f"model {name!r} is a single file; a folder in diffusers layout is needed (with model_index.json)\n"
            f'hint: make one with diffusers\' `from_single_file(...).save_pretrained("FOLDER")`'
        )
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(
            f"model {name!r} is not a folder, not a hub id (owner/name) and not built in ({', '.join(BUILT_IN)})\n"
            f"hint: the {flavour.name} weights are {flavour.hub_id}; write that, or a local diffusers folder"
        )
    check_hub_id(name)
    snapshot = find_snapshot(name, flavour, SMALL_FILES, offline=OFFLINE)
    known = folder.identify_snapshot(name, snapshot)
    return ModelLocation(
        name=name,
        identity=f"{name}@{snapshot.name}",
        path=None,
        revision=snapshot.name,
        facts=known.facts,
        origins=known.origins,
    )


def _in_folder(name: str, path: Path) -> ModelLocation:
    try:
        known = folder.identify_folder(path)
        identity = fingerprint(path, folder.COMPONENTS)
    except OSError as error:
        raise ModelError(
            f"model folder {path} cannot be read: {error}\n"
            "hint: make its folders and files readable for the user that trains, or name a copy"
        ) from error
    facts = None if name == TINY else known.facts
    return ModelLocation(name=name, identity=identity, path=path.resolve(), facts=facts, origins=known.origins)


def part_identity(location: ModelLocation, components: tuple[str, ...]) -> str:
    """Return the content hash of some components only, so that another transformer in the same folder keeps the caches.

    For a hub model it is the whole revision; for ``tiny-random`` the recipe.
    """
    if location.path is None or location.name == TINY_RANDOM:
        return location.identity
    return fingerprint(location.path, components)
