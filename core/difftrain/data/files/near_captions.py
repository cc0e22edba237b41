"""Files that were probably meant as missing captions: another ending, another folder, another spelling."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from difftrain.data.files.file_types import CAPTION, suffix_of
from difftrain.errors import printable
from difftrain.types import ImageRecord

_TEXTS = frozenset({CAPTION, ".caption", ".captions", ".cap", ".text", ".prompt", ".tag", ".tags", ".md"})
_TABLES = frozenset({".json", ".jsonl", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".xml"})
_READ_AS_TABLES = ("jsonl", "csv", "parquet")
"""Values of caption_strategy that read one table."""
_WHOLE_SETS = frozenset({"annotations", "caption", "captions", "data", "dataset", "labels", "metadata", "prompts"})
"""Stems of files where other programs keep all captions of a folder."""


def near_captions(records: Sequence[ImageRecord], others: Iterable[str]) -> str | None:
    """Return what to do with files that nearly match images without a caption; None if there are none.

    Args:
        records: Images without a caption.
        others: Files of their dataset that are not images, as paths below its root.
    """
    by_stem: dict[str, list[str]] = {}
    whole: list[str] = []
    for name in others:
        suffix = suffix_of(name)
        if suffix in _TEXTS or suffix in _TABLES:
            by_stem.setdefault(_spelling(name.rpartition(".")[0].rpartition("/")[2]), []).append(name)
            if _spelling(name.rpartition(".")[0].rpartition("/")[2]) in _WHOLE_SETS:
                whole.append(name)
    advice: list[str] = []
    for record in records:
        found = _nearest(record, by_stem)
        if found is not None:
            advice.append(_advice(record, found))
    if advice:
        return advice[0] + (f", and so on for {len(advice)} files" if len(advice) > 1 else "")
    return f"{printable(whole[0])} is not read: {_way_to_read(whole[0])}" if whole else None


def _nearest(record: ImageRecord, by_stem: dict[str, list[str]]) -> str | None:
    """Return the nearest file, in the image's own folder if possible."""
    folder, _, name = record.key.rpartition("/")
    candidates = [*by_stem.get(_spelling(name), ()), *by_stem.get(_spelling(name + record.image.extension), ())]
    beside = [one for one in candidates if _spelling(one.rpartition("/")[0]) == _spelling(folder)]
    return min(beside or candidates, default=None, key=lambda one: suffix_of(one) in _TABLES)


def _advice(record: ImageRecord, found: str) -> str:
    wanted = record.key + CAPTION
    if suffix_of(found) in _TABLES:
        return f"{printable(found)} is not read: put its caption into {printable(wanted)}"
    if found.rpartition("/")[0] != record.key.rpartition("/")[0]:
        return f"move {printable(found)} to {printable(wanted)}"
    if unicodedata.normalize("NFC", found) == wanted:
        return f"{printable(found)} spells its accents in another Unicode form than its image; rename it"
    return f"rename {printable(found)} to {printable(wanted)}"


def _way_to_read(table: str) -> str:
    """Return how a file with all captions can be used."""
    strategy = suffix_of(table).removeprefix(".")
    if strategy not in _READ_AS_TABLES:
        return "put each caption into its own file"
    if table.rpartition("/")[2] == f"metadata.{strategy}":
        return f"set caption_strategy = {strategy}"
    return f'set caption_strategy = {strategy} and "{strategy}": {{"path": ...}}'


def _spelling(name: str) -> str:
    """Remove differences that look alike: case, spaces, the form of accents."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
