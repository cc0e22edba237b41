"""Finds a model's files without loading a weight: a built-in one, a local diffusers folder, a hub id.

Light: no torch. `folder.py` says what a folder must contain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
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
from difftrain_flux.model_files.denoiser import locate_file, locate_folder, locate_on_hub
from difftrain_flux.model_files.identify import INDEX, SMALL_FILES, check_hub_id

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def locate(model: str | None, flavour: ModelFlavour, components: Sequence[str] = folder.COMPONENTS) -> ModelLocation:
    """Find where the model is and identify its content.

    Args:
        components: Those that it needs.

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
        return _in_folder(name, path, components, flavour)
    if os.path.isfile(path):  # noqa: PTH113
        raise ModelError(_only_a_denoiser(f"model {name!r} is a single file", flavour))
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(
            f"model {name!r} is not a folder, not a hub id (owner/name) and not built in ({', '.join(BUILT_IN)})\n"
            f"hint: the {flavour.name} weights are {flavour.hub_id}; write that, or a local diffusers folder"
        )
    check_hub_id(name)
    snapshot = find_snapshot(name, flavour, SMALL_FILES, offline=OFFLINE, marks=())
    if not (snapshot / INDEX).is_file():
        raise ModelError(
            _only_a_denoiser(f"hub model {name!r} has no {INDEX}, so it is not in diffusers layout", flavour)
        )
    known = folder.identify_snapshot(name, snapshot)
    return ModelLocation(
        name=name,
        identity=f"{name}@{snapshot.name}",
        path=None,
        revision=snapshot.name,
        facts=known.facts,
        origins=known.origins,
    )


def locate_with_denoiser(model: str | None, denoiser: str, flavour: ModelFlavour) -> ModelLocation:
    """Find the denoiser in another place than the other parts; see :func:`locate` for the other parts.

    Args:
        denoiser: A safetensors file; a folder or hub id with a whole model, a transformer alone or a single file; or a
            built-in name.

    Raises:
        ModelError: As :func:`locate`; and if the denoiser is another model, or does not fit the companion's config.
    """
    companion = locate(model, flavour, folder.OTHER_COMPONENTS)
    path = Path(os.path.expanduser(denoiser))  # noqa: PTH111
    if denoiser in BUILT_IN:
        own = locate(denoiser, flavour)
    elif os.path.isfile(path):  # noqa: PTH113
        own = locate_file(denoiser, path.resolve(), companion)
    elif os.path.isdir(path):  # noqa: PTH112
        own = locate_folder(denoiser, path.resolve(), companion)
    elif HUB_ID.fullmatch(denoiser) and not denoiser.startswith("."):
        own = locate_on_hub(denoiser, flavour, companion)
    else:
        raise ModelError(
            f"pretrained_transformer_model_name_or_path: {denoiser!r} is not a file, not a folder, not a hub id "
            f"(owner/name) and not built in ({', '.join(BUILT_IN)})\n"
            "hint: name a safetensors file or a folder that exists, or leave it out to take the denoiser from "
            "pretrained_model_name_or_path"
        )
    return replace(companion, denoiser=own)


def _only_a_denoiser(problem: str, flavour: ModelFlavour) -> str:
    return (
        f"{problem}, but the text encoders, the VAE and the scheduler are needed too\n"
        f'hint: write it as "pretrained_transformer_model_name_or_path"; "pretrained_model_name_or_path" is then '
        f"the hub id or folder of the other parts ({flavour.hub_id} if left out)"
    )


def _in_folder(name: str, path: Path, components: Sequence[str], flavour: ModelFlavour) -> ModelLocation:
    try:
        parts = [*components, INDEX]
        if next(path.glob("*.safetensors"), None) and not any((path / part).exists() for part in parts):
            raise ModelError(_only_a_denoiser(f"model folder {path} has only single files", flavour))
        known = folder.identify_folder(path, components)
        identity = fingerprint(path, components)
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
