"""The files that hold one split of a set: a file, a folder, a saved set, or files of the hub."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from difftrain.config.messages import nearest
from difftrain.data.files.local_image import file_stamp
from difftrain.data.tables.hub_files import hub_errors, list_hub_files
from difftrain.data.tables.table_file import absolute
from difftrain.errors import DataError, printable

_SUFFIXES = (".parquet", ".arrow")
_SHARD = re.compile(r"(?P<name>.+?)-\d+-of-\d+$")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in the names of files and folders that mean a split."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class FoundFile(NamedTuple):
    """A file of a set."""

    path: str
    """Absolute, or a name of a file on the hub."""
    version: str
    """Changes with its bytes."""


def find_files(name: str, split: str | None, revision: str | None, *, streaming: bool = False) -> list[FoundFile]:
    """Return the files of a split, in order of the rows; asks the hub only for what is not here.

    Args:
        streaming: Leave files of the hub there instead of keeping them on this machine.

    Raises:
        DataError: If the set or the split does not exist, or cannot be reached.
    """
    path = Path(name).expanduser()
    if path.exists():
        return list(map(_here, _local_files(Path(absolute(str(path))), split)))
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise DataError(
            f"dataset_name {printable(name)} does not exist\nhint: relative paths start at {Path.cwd()}; "
            "a set of the hub is named OWNER/NAME"
        )
    return _streamed(name, split, revision) if streaming else list(map(_here, _hub_files(name, split, revision)))


def _here(file: str) -> FoundFile:
    try:
        return FoundFile(file, file_stamp(file))
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read ({error.strerror or error})") from error


def _local_files(path: Path, split: str | None) -> list[str]:
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise DataError(f"dataset_name {printable(path)} is neither a parquet nor an arrow file, nor a folder")
        return _chosen({_split_of(path.name) if split else "train": [str(path)]}, split, str(path))
    if (path / "dataset_dict.json").is_file():
        names = _saved(path / "dataset_dict.json", "splits")
        folder = Path(_chosen({one: [str(path / one)] for one in names}, split, str(path))[0])
        return _saved_files(folder)
    if (path / "state.json").is_file():
        return _chosen({_saved(path / "state.json", "_split") or "train": _saved_files(path)}, split, str(path))
    below = [one.relative_to(path).as_posix() for one in path.rglob("*") if one.suffix in _SUFFIXES]
    return [str(path / one) for one in _chosen(_by_split(below), split, str(path))]


def _saved_files(folder: Path) -> list[str]:
    """Return the files of one set that the package ``datasets`` saved."""
    return [str(folder / entry["filename"]) for entry in _saved(folder / "state.json", "_data_files")]


def _saved(file: Path, key: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{printable(file)} cannot be read, so the saved set is not complete ({type(error).__name__}: {error})\n"
            "hint: save the set again"
        ) from error


def _hub_files(name: str, split: str | None, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of whichever httpx it uses
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    with hub_errors(name):
        try:
            listed = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
        except (OfflineModeIsEnabled, HTTPError) as error:
            if isinstance(error, HfHubHTTPError):  # the hub has answered
                raise
            folder = snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
            return _local_files(Path(folder), split)
        chosen = _chosen(_by_split([one for one in listed if one.endswith(_SUFFIXES)]), split, name)
        return [hf_hub_download(name, one, repo_type="dataset", revision=revision) for one in chosen]


def _streamed(name: str, split: str | None, revision: str | None) -> list[FoundFile]:
    listed = list_hub_files(name, revision)
    if not listed:
        raise DataError(
            f"dataset_name {printable(name)} has no parquet files, and streaming reads no others\n"
            'hint: try revision = "refs/convert/parquet", or set streaming = false'
        )
    return [FoundFile(*listed[one]) for one in _chosen(_by_split(listed), split, name)]


def _by_split(names: Iterable[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        splits[_split_of(name)].append(name)
    return splits


def _split_of(name: str) -> str:
    """Return the split that a file belongs to: ``data/train-00000-of-00004.parquet``, ``val/a.arrow``.

    The name of a shard is a split whatever it is; of other names only the usual words are, and the rest is ``train``.
    """
    stem = name.rpartition(".")[0]
    shard = _SHARD.fullmatch(stem.rpartition("/")[2])
    words = re.split(r"[^a-z0-9]+", stem.lower())
    known = next((_SPLITS[word] for word in reversed(words) if word in _SPLITS), None)
    if shard is not None and known is None:
        return shard["name"]
    return known or "train"


def _chosen(splits: Mapping[str, Sequence[str]], split: str | None, name: str) -> list[str]:
    """Return the files of a split; without a name, of ``train`` or of the only one."""
    if not splits:
        raise DataError(
            f"dataset_name {printable(name)} has no parquet or arrow files\n"
            "hint: for a folder of images set type = local; for a set of the hub in another format try "
            'revision = "refs/convert/parquet"'
        )
    wanted = split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted in splits:
        return list(splits[wanted])
    guess = nearest(wanted, splits)
    advice = f"did you mean {guess!r}? " if guess else ""
    raise DataError(f"dataset_name {printable(name)} has no split {wanted!r}; {advice}splits: {', '.join(splits)}")
