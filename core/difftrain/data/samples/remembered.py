"""Remembers the samples that unchanged data gave: a restart then only looks at names, sizes and times of files.

It is only a cache, in one file for each set of options. Whatever the samples depend on is compared first: the plan, the
program's and its plugins' own files, and every file in and below the data folders. Data that is not only files, or that
has generators, whose images may be missing, is prepared anew each time.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128, xxh3_128_hexdigest

from difftrain.data.caching.tensor_cache import write_atomically
from difftrain.data.entries.data_plan import DataPlan, DatasetPlan
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.files.folder_digest import DataFolder, digest_of_folder, folder_identity
from difftrain.data.files.local_image import file_stamp
from difftrain.data.files.sources import LocalSource
from difftrain.data.packed.packed_images import JsonRows, NamesOf, PackedRecords
from difftrain.data.packed.packed_samples import PackedSamples
from difftrain.data.samples.findings import MANY
from difftrain.data.samples.looking_aside import looked_at_aside, to_look_at_aside
from difftrain.data.scanning.many_files import ManyFiles
from difftrain.errors import DataError
from difftrain.types import Finding, Phase, Reporter

FOLDER = "prepared"
"""Beside the index of scanned files."""
_FORMAT = 2
_MOST_FILES = 8
"""Files kept, the newest ones."""
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, NotImplementedError, zipfile.BadZipFile)
"""What numpy and JSON raise for a damaged file."""


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """What the data gave."""

    samples: PackedSamples
    held_out: PackedSamples
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]
    """Counts of the images, as plain JSON values."""


class DataMemory:
    """The samples that a plan gave, if nothing that they depend on has changed since.

    It looks at the folder of a dataset before the source lists it: what changes during the scan is then noticed at the
    next start.
    """

    def __init__(self, plan: DataPlan, reporter: Reporter) -> None:
        self._path: Path | None = None
        self._code = ""
        self._plan, self._reporter = plan, reporter
        self._looked_at: dict[str, str] = {}
        """Digests of the datasets' folders, by id; empty where something cannot be looked at."""
        self._begun: dict[str, Callable[[], tuple[str, int]]] = {}
        """Waits for what other processes look at, by id."""
        if _is_plain(plan):
            # runs that differ only in where they write share a file; the digest has the folders that matter
            same = replace(plan, written_folders={})
            identity = xxh3_128_hexdigest(repr(same).encode("utf-8", "backslashreplace"))
            self._path = plan.index_path.parent / FOLDER / f"{identity}.npz"
            self._had_index = plan.index_path.exists()  # whoever deletes it wants all files read again
            with suppress(OSError):
                self._code = _digest_of_code(plan)

    def look_at(self, dataset: DatasetPlan, seen: Callable[[int], None] = lambda _: None) -> None:
        """Look at a dataset's files, unless that is done or of no use.

        Args:
            seen: Called with the number of files seen so far, again and again.
        """
        if self._path is not None and dataset.id not in self._looked_at:
            with self._reporter.phase(f"look at the files of {dataset.id}") as phase:
                self._look_at(dataset, phase, seen)

    def look_ahead(self, readers: ManyFiles) -> None:
        """Begin to look at the files of all other datasets, if processes for that have started."""
        if self._path is not None and readers.have_started:
            for dataset in self._plan.datasets:
                if dataset.id not in self._looked_at and dataset.id not in self._begun:
                    with suppress(OSError):
                        self._begun[dataset.id] = readers.aside(digest_of_folder, _data_folder(self._plan, dataset))

    def _look_at(self, dataset: DatasetPlan, phase: Phase, seen: Callable[[int], None] = lambda _: None) -> None:
        total = 0

        def count(files: int) -> None:
            nonlocal total
            phase.advance(files)
            total += files
            seen(total)

        self._looked_at[dataset.id] = ""
        with suppress(OSError):
            if dataset.id in self._begun:
                self._looked_at[dataset.id], files = self._begun.pop(dataset.id)()
                count(files)
            else:
                self._looked_at[dataset.id], _ = digest_of_folder(_data_folder(self._plan, dataset), count)

    def _look_at_all(self, images: Mapping[str, int], phase: Phase) -> None:
        """Look at all datasets, at some of them in another process if there were very many images."""
        datasets = self._plan.datasets
        others = to_look_at_aside(datasets, images)
        with suppress(OSError), looked_at_aside({one.id: _data_folder(self._plan, one) for one in others}) as begun:
            self._begun |= begun
            for dataset in sorted(datasets, key=lambda one: one.id in begun):
                self._look_at(dataset, phase)

    def _digest(self) -> str:
        """Return a hash of everything that the samples depend on beside the plan; empty if not all is looked at."""
        parts = [self._looked_at.get(dataset.id, "") for dataset in self._plan.datasets]
        return "|".join((self._code, *parts)) if self._code and all(parts) else ""

    def recall(self) -> Remembered | None:
        """Return what was remembered; None if there is nothing, or anything has changed."""
        if self._path is None or not self._had_index or not self._path.exists():
            return None
        with self._reporter.phase("look for changed files") as phase:
            self._look_at_all(_images_of(self._path), phase)
        digest = self._digest()
        if not digest:
            return None
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes())
                if (header["format"], header["digest"]) != (_FORMAT, digest):
                    return None
                return Remembered(
                    samples=PackedSamples.restored(*_state("samples", header, arrays)),
                    held_out=PackedSamples.restored(*_state("held_out", header, arrays)),
                    findings=tuple(_finding(place, header, arrays) for place in range(len(header["findings"]))),
                    facts=header["facts"],
                )
        except _UNREADABLE:
            return None

    def keep(self, found: Remembered) -> None:
        """Remember what the data gave, as far as the disk allows."""
        states = {"samples": found.samples.state(), "held_out": found.held_out.state()}
        kept = found.findings
        states |= {f"records {place}": PackedRecords.of(one.records).state() for place, one in enumerate(kept)}
        states |= {
            f"names {place}": ({}, JsonRows.of(one.names).arrays())
            for place, one in enumerate(kept)
            if not isinstance(one.names, NamesOf)
        }
        digest = self._digest()
        if self._path is None or not digest or None in states.values():
            return
        arrays: dict[str, npt.NDArray[Any]] = {}
        header = {
            "format": _FORMAT,
            "digest": digest,
            "findings": list(map(_written, kept)),
            "facts": found.facts,
        }
        for name, state in states.items():
            assert state is not None, "looked at above"
            header[name] = state[0]
            arrays |= {f"{name}.{key}": values for key, values in state[1].items()}
        stream = io.BytesIO()
        np.savez(
            stream, allow_pickle=False, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays
        )
        with suppress(DataError, OSError):
            write_atomically(self._path, stream.getvalue())
            _forget_oldest(self._path.parent)


def _images_of(path: Path) -> dict[str, int]:
    """Return the number of images that each dataset had, by id, as far as that is remembered."""
    with suppress(*_UNREADABLE), np.load(path, allow_pickle=False) as arrays:
        images = json.loads(arrays["header"].tobytes())["facts"]["images"]
        return {str(name): int(count) for name, count in images.items()}
    return {}


def _is_plain(plan: DataPlan) -> bool:
    """Return whether the samples depend on nothing but files that :class:`DataMemory` looks at."""
    return all(
        type(dataset.source) is LocalSource
        and not dataset.generators
        and (dataset.captions is None or type(dataset.captions) is TextfileCaptions)
        for dataset in plan.datasets
    )


def _digest_of_code(plan: DataPlan) -> str:
    """Return a hash of the code that samples are made with.

    Raises:
        OSError: If a file cannot be looked at.
    """
    digest = xxh3_128(f"{sys.version}|{np.__version__}|".encode())
    for folder, pattern in sorted(_code(plan).items()):
        for file in sorted(Path(folder).glob(pattern)):
            digest.update(f"{file}:{file_stamp(file)}|".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _data_folder(plan: DataPlan, dataset: DatasetPlan) -> DataFolder:
    assert isinstance(dataset.source, LocalSource), "see _is_plain"
    root = os.path.abspath(dataset.source.instance_data_dir.expanduser())  # noqa: PTH100
    apart = sorted(folder_identity(folder) for folder in plan.written_folders.values() if folder.exists())
    return DataFolder(root, _written_around(plan, root), apart)


def _written_around(plan: DataPlan, root: str) -> list[tuple[str, str]]:
    """Return the folders that this run writes, by name, that contain a data folder or lie in it."""
    data = os.path.join(os.path.realpath(root), "")  # noqa: PTH118
    written = ((name, os.path.join(os.path.realpath(folder), "")) for name, folder in plan.written_folders.items())  # noqa: PTH118
    return sorted(one for one in written if data.startswith(one[1]) or one[1].startswith(data))


def _code(plan: DataPlan) -> dict[str, str]:
    """Return the folders of the program's and of the plugins' code that samples are made with, and which files count.

    Beside a plugin that is a single file, the folders may hold anything, such as the data.
    """
    used = [
        type(each)
        for one in plan.datasets
        for each in (one.source, one.captions, one.crop_style, one.pairing, one.row_pairing)
    ]
    modules = {cls.__module__.partition(".")[0] for cls in used} | {"difftrain"}
    code: dict[str, str] = {}
    for module in filter(None, map(sys.modules.get, modules)):
        if file := getattr(module, "__file__", None):
            code[os.path.dirname(file)] = "**/*.py" if hasattr(module, "__path__") else "*.py"  # noqa: PTH120
    return code


def _state(name: str, header: Mapping[str, Any], arrays: Any) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
    own = {key.partition(".")[2]: arrays[key] for key in arrays.files if key.partition(".")[0] == name}
    return header[name], own


def _finding(place: int, header: Mapping[str, Any], arrays: Any) -> Finding:
    records = PackedRecords.restored(*_state(f"records {place}", header, arrays))
    own = f"names {place}"
    names = JsonRows.restored(_state(own, header, arrays)[1]) if own in header else NamesOf(records)
    few = len(names) < MANY
    return Finding(
        **header["findings"][place],
        records=tuple(records) if few else records,
        names=tuple(names) if few else names,
    )


def _written(finding: Finding) -> dict[str, Any]:
    """Return a finding without its images as plain JSON values."""
    words = (field.name for field in fields(finding) if field.name not in ("records", "names"))
    return {name: getattr(finding, name) for name in words}


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in files[_MOST_FILES:]:
        file.unlink(missing_ok=True)
