"""The denoiser of a location: with the other parts, or in a folder, hub model or file of its own.

Light: torch is imported when tensors are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftrain import (
    ModelError,
    ModelFlavour,
    ModelLocation,
    check_complete,
    fetch_files,
    fetch_only_file,
    file_fingerprint,
    find_snapshot,
    fingerprint,
    only_file,
    read_json,
    read_weights,
)
from difftrain_flux.built_in import OFFLINE, TINY_RANDOM
from difftrain_flux.model_files.components import local_folder
from difftrain_flux.model_files.folder import NEEDED, check_class
from difftrain_flux.model_files.identify import (
    INDEX,
    MODEL_CARD,
    TRANSFORMER_CONFIG,
    Identity,
    check_hub_id,
    identify,
    read_card,
)
from difftrain_flux.model_files.single_file import check_fits, read_single_file, recognise

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
TRANSFORMER = "transformer"
WEIGHTS = "diffusion_pytorch_model*"
"""Weights at the top of a hub repository that holds a transformer alone."""


def locate_file(name: str, path: Path, companion: ModelLocation) -> ModelLocation:
    """Return the location of a denoiser in one file, compared with the companion's config as far as that exists yet.

    Raises:
        ModelError: If it is another file, or of another size than the config says.
    """
    single = recognise(path)
    config = _companion_config(companion)
    if config:
        check_fits(single, config, f"{TRANSFORMER_CONFIG} of {companion.name}")
    known = single.identity
    return ModelLocation(
        name=name, identity=file_fingerprint(path), path=path, facts=known.facts, origins=known.origins
    )


def locate_folder(name: str, path: Path, companion: ModelLocation) -> ModelLocation:
    """Return the location of a denoiser in a folder: a whole model, its transformer alone, or one file with it.

    Raises:
        ModelError: If it is another model, not complete, or one of several files.
    """
    try:
        files = [] if _has_layout(path) else [file.name for file in path.glob("*.safetensors")]
        if files:
            only = only_file(files, f"model folder {path}", "name the one to train with its path")
            return locate_file(name, path / only, companion)
        folder = transformer_in(path)
        known = identify_folder(path)
        identity = fingerprint(folder.parent, (folder.name,))
    except OSError as error:
        raise ModelError(
            f"model folder {path} cannot be read: {error}\n"
            "hint: make its folders and files readable for the user that trains, or name a copy"
        ) from error
    return ModelLocation(name=name, identity=identity, path=path, facts=known.facts, origins=known.origins)


def identify_folder(path: Path) -> Identity:
    """Recognise the transformer in a folder in diffusers layout: a whole model's, or the transformer alone.

    Raises:
        ModelError: If it is another model, or not complete.
    """
    folder = transformer_in(path)
    check_complete(folder.parent, (folder.name,), (folder.name,), {folder.name: NEEDED[TRANSFORMER]})
    return _identify(f"model folder {path}", path, read_json(folder / CONFIG))


def locate_on_hub(hub_id: str, flavour: ModelFlavour, companion: ModelLocation) -> ModelLocation:
    """Return the location of a denoiser on the hub: a whole model, its transformer alone, or one file with it.

    Such a file is downloaded at once: only its header says what it is.

    Raises:
        ModelError: If it is another model, one of several files, or cannot be reached.
    """
    check_hub_id(hub_id)
    small = (TRANSFORMER_CONFIG, CONFIG, INDEX, MODEL_CARD)
    snapshot = find_snapshot(hub_id, flavour, small, offline=OFFLINE, marks=())
    if not _has_layout(snapshot):
        own = locate_file(hub_id, fetch_only_file(hub_id, snapshot, flavour, offline=OFFLINE), companion)
        said = identify(f"hub model {hub_id!r}", {}, {}, read_card(snapshot)).origins
        return replace(own, origins=tuple(dict.fromkeys((*said, *own.origins))))
    known = _identify(f"hub model {hub_id!r}", snapshot, read_json(transformer_in(snapshot) / CONFIG))
    return ModelLocation(
        name=hub_id,
        identity=f"{hub_id}@{snapshot.name}",
        path=None,
        revision=snapshot.name,
        facts=known.facts,
        origins=known.origins,
    )


def _has_layout(folder: Path) -> bool:
    """Whether a folder has a transformer's config, its own or a whole model's, so that it is in diffusers layout."""
    return (folder / CONFIG).is_file() or (folder / TRANSFORMER_CONFIG).is_file()


def transformer_in(folder: Path) -> Path:
    """Return the folder of the transformer: `transformer` in a whole model, else the folder itself."""
    return folder if (folder / CONFIG).is_file() and not (folder / TRANSFORMER).is_dir() else folder / TRANSFORMER


def config_folder(location: ModelLocation) -> Path:
    """Return the folder of the denoiser's config, which has its sizes; for a single file, the companion's.

    Raises:
        ModelError: If a hub model can be neither downloaded nor found in the cache.
    """
    source = location.of_denoiser
    if source.path is None or not source.path.is_file():
        return _weights_folder(source)
    if location.path is None:
        return fetch_files(location, [TRANSFORMER_CONFIG], offline=OFFLINE) / TRANSFORMER
    return local_folder(location, (TRANSFORMER,)) / TRANSFORMER


def denoiser_weights(location: ModelLocation) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight under its name in diffusers, reading one at a time.

    Raises:
        ModelError: If files cannot be read, or a single file does not fit the companion's config.
    """
    source = location.of_denoiser
    if source.path is None or not source.path.is_file():
        yield from read_weights(_weights_folder(source))
        return
    single = recognise(source.path)
    config = read_json(config_folder(location) / CONFIG)
    check_fits(single, config, f"{TRANSFORMER_CONFIG} of {location.name}")
    yield from read_single_file(single, config)


def _weights_folder(source: ModelLocation) -> Path:
    if source.path is not None:
        return transformer_in(local_folder(source, (TRANSFORMER,)))
    return transformer_in(fetch_files(source, [CONFIG, WEIGHTS, f"{TRANSFORMER}/*"], offline=OFFLINE))


def _identify(where: str, folder: Path, config: dict[str, Any]) -> Identity:
    check_class(where, config)
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    return identify(where, index, config, read_card(folder))


def _companion_config(companion: ModelLocation) -> dict[str, Any]:
    """Return the transformer's config of a whole model; empty for the random one, which is made when first loaded.

    Raises:
        ModelError: If there is none, or sizes are missing in it.
    """
    if companion.name == TINY_RANDOM:
        return {}
    path = (companion.path or fetch_files(companion, [TRANSFORMER_CONFIG], offline=OFFLINE)) / TRANSFORMER_CONFIG
    if not path.is_file():
        raise ModelError(
            f"model {companion.name!r} has no {TRANSFORMER_CONFIG}, which gives the sizes of a denoiser in one file\n"
            "hint: name a model in diffusers layout with pretrained_model_name_or_path; its transformer/config.json "
            "is enough, without the weights beside it"
        )
    config = read_json(path)
    check_class(f"model {companion.name!r}", config)
    if missing := [key for key in NEEDED[TRANSFORMER] if config.get(key) is None]:
        raise ModelError(f"{path} has no {', '.join(missing)}\nhint: download or save it again")
    return config
