"""The one safetensors file of a place that is not in diffusers layout: a folder, or a hub repository. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from difftrain.contracts import ModelFlavour
from difftrain.errors import ModelError, first_few
from difftrain.model.hub import OTHER_FORMATS, explained


def only_file(names: Iterable[str], where: str, remedy: str) -> str:
    """Return the only name of a safetensors file.

    Args:
        where: The place, for messages.
        remedy: What to do if there are several.

    Raises:
        ModelError: If there is none, or more than one; lists them.
    """
    found = sorted(name for name in names if name.endswith(".safetensors"))
    found = [name for name in found if not any(fnmatch(name, pattern) for pattern in OTHER_FORMATS)] or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(
            f"{where} is not in diffusers layout and has no safetensors file\n"
            "hint: name a safetensors file, or a model in diffusers layout"
        )
    raise ModelError(
        f"{where} is not in diffusers layout and has {len(found)} safetensors files: {first_few(found)}\nhint: {remedy}"
    )


def fetch_only_file(hub_id: str, snapshot: Path, flavour: ModelFlavour, *, offline: str = "") -> Path:
    """Return the only safetensors file of a hub repository, downloaded unless it is cached; offline, of its cache.

    Args:
        snapshot: The folder that :func:`~difftrain.model.hub.find_snapshot` found, whose name is the commit.
        flavour: See there, as for ``offline``.

    Raises:
        ModelError: As :func:`only_file`; or if it can be neither downloaded nor found in the cache.
    """
    from huggingface_hub import snapshot_download

    with explained(hub_id, flavour.licence_url if hub_id == flavour.hub_id else None, offline):
        name = only_file(
            _files_of(hub_id, snapshot),
            f"hub model {hub_id!r}",
            f"download the one to train with `hf download {hub_id} FILE --local-dir models`, and name its path",
        )
        return Path(snapshot_download(hub_id, revision=snapshot.name, allow_patterns=[name])) / name


def _files_of(hub_id: str, snapshot: Path) -> list[str]:
    """Return the names of a commit's files; without the hub, of those that are cached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of whichever httpx it uses

    try:
        return HfApi().list_repo_files(hub_id, revision=snapshot.name)
    except (ConnectionError, HTTPError):
        cached = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.safetensors")]
        if not cached:
            raise
        return cached
