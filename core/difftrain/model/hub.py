"""Hugging Face Hub: resolves a name to a commit, fetches its files, explains refusals.

Light: huggingface_hub is imported when used, and it does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from difftrain.contracts import ModelFlavour
from difftrain.errors import ModelError
from difftrain.model.diffusers_folder import INDEX
from difftrain.types import ModelLocation

OTHER_FORMATS = ["*.bin", "*.ckpt", "*.msgpack", "*.h5", "*.onnx*", "*.fp16.*", "*.non_ema.*"]
"""Copies of the same weights in other formats, which some repositories have."""


def find_snapshot(
    hub_id: str,
    flavour: ModelFlavour,
    small_files: Iterable[str],
    *,
    offline: str = "",
    marks: Sequence[str] = (INDEX,),
) -> Path:
    """Return the folder of a hub id's current commit, with its small files; offline, whatever the hub cache has.

    The folder's name is the commit. A gated repository refuses these files like any other.

    Args:
        flavour: Its licence page is shown to the user if these are its weights.
        small_files: Names of the files needed to tell what the model is.
        offline: What a user without network can do instead, as the end of the hint: ", or to 'tiny'".
        marks: Files that show that the repository is in diffusers layout; it must have one of them. If there are none,
            any repository will do.

    Raises:
        ModelError: If the repository is gated, unknown or unreachable and not cached.
    """
    from huggingface_hub import snapshot_download

    with explained(hub_id, flavour.licence_url if hub_id == flavour.hub_id else None, offline):
        snapshot = Path(snapshot_download(hub_id, allow_patterns=list(small_files)))
    if marks and not any((snapshot / mark).is_file() for mark in marks):
        raise ModelError(
            f"hub model {hub_id!r} has no {' or '.join(marks)}, so it is not in diffusers layout\n"
            f"hint: the {flavour.name} weights are {flavour.hub_id}"
        )
    return snapshot


def fetch_components(location: ModelLocation, components: Iterable[str], *, offline: str = "") -> Path:
    """Return the folder with the wanted components of a hub model; download them unless cached.

    Raises:
        ModelError: If they can be neither downloaded nor found in the cache.
    """
    # the repositories also hold single-file weights at the top: tens of gigabytes that nobody here reads
    return fetch_files(location, [INDEX, *(f"{name}/*" for name in components)], offline=offline)


def fetch_files(location: ModelLocation, patterns: Iterable[str], *, offline: str = "") -> Path:
    """Return the folder with a hub model's files that match the patterns; weights only as full-precision safetensors.

    Raises:
        ModelError: If they can be neither downloaded nor found in the cache.
    """
    from huggingface_hub import snapshot_download

    with explained(location.name, None, offline):
        folder = snapshot_download(
            location.name,
            revision=location.revision,
            allow_patterns=list(patterns),
            ignore_patterns=OTHER_FORMATS,
        )
    return Path(folder)


def cached_file(location: ModelLocation, name: str) -> Path | None:
    """Return a file of a hub model if an earlier download of this commit has left it; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(location.name, name, revision=location.revision)
    return Path(found) if isinstance(found, str) else None


@contextmanager
def explained(hub_id: str, licence_url: str | None, offline: str) -> Iterator[None]:
    """Turn every refusal of the hub into one message that says what to do."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of whichever httpx it uses
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = licence_url or f"https://huggingface.co/{hub_id}"
    local = "or set pretrained_model_name_or_path to a local diffusers folder"
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"model {hub_id!r}: the hub refuses the download because the weights are gated\n"
            f"hint: accept the licence at {page}, log in with `hf auth login`, then run again; {local}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model {hub_id!r}: the hub has no such repository, or it is private and you are not logged in\n"
            f"hint: check the name; accept the licence at {page} if there is one, log in with `hf auth login`; {local}"
        ) from error
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise ModelError(
            f"model {hub_id!r}: the hub cannot be reached, and the files are not all in the local hub cache\n"
            f"hint: check the network (and HF_HUB_OFFLINE); for a first download accept the licence at {page}"
            f"{'' if licence_url else ' if there is one'} and log in with `hf auth login`; {local}{offline}"
        ) from error
    except (HFValidationError, HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {hub_id!r}: the hub does not give its files: {reason}\n"
            f"hint: accept the licence at {page} if there is one, log in with `hf auth login`; {local}"
        ) from error
