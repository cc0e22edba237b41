"""One walk over a data folder: its images, its other files, and what in it is not data.

The listing uses only what the folder itself tells about a file, because there may be hundreds of thousands. Start
with :func:`walk_folder`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path

from difftrain.contracts import Listing
from difftrain.data.files.file_types import SYSTEM_NAMES, is_system, suffix_of
from difftrain.data.files.local_image import LocalImage
from difftrain.errors import printable

_Identity = tuple[int, int]

_OF_A_RUN = re.compile(r"checkpoint-\d+|previous-\d+|validation")
_OF_A_CACHE = frozenset({"made", "text", "vae"})
OTHER_RUN = "results of another run"
OTHER_CACHE = "cache of another run"


def walk_folder(root: str, suffixes: Collection[str], written: Mapping[str, Path]) -> Listing:
    """List everything below a folder. Links are followed, but no folder is entered twice.

    Args:
        root: Absolute path.
        suffixes: Suffixes of image files.
        written: Folders that this run writes, by name; their images are counted and left out. If the root itself is
            inside one of them, the user means the files there, and they are used.
    """
    walk = _Walk(root, suffixes, written)
    walk.enter_all()
    walk.images.sort(key=attrgetter("key"))
    return Listing(
        images=walk.images,
        others=sorted(walk.others),
        written=walk.left_out,
        skipped=sorted(walk.skipped),
        unusable=sorted(walk.unusable),
        notes=walk.notes,
    )


class _Walk:
    """The folders still to enter, and what was found so far."""

    def __init__(self, root: str, suffixes: Collection[str], written: Mapping[str, Path]) -> None:
        self._root, self._suffixes = root, suffixes
        self.images: list[LocalImage] = []
        self.others: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.skipped: list[str] = []
        self.unusable: list[str] = []
        self.notes: list[str] = []
        self._entered: set[_Identity] = set()
        self._output = _identity(written["output_dir"]) if "output_dir" in written else None
        self._cache = _identity(written["cache_dir"]) if "cache_dir" in written else None
        self._written: dict[_Identity, str] = {}
        for name, folder in written.items():
            identity = _identity(folder)
            if identity is not None:
                self._written.setdefault(identity, f"{name} {folder}")
        self._allow_root()
        self._waiting: list[tuple[str, str | None]] = [("", None)]
        """Folders below the root, each with the name of the written folder it is part of, if any."""

    def enter_all(self) -> None:
        while self._waiting:
            self._enter(*self._waiting.pop())

    def _allow_root(self) -> None:
        """Forget the written folders that contain the root, because whoever names it means it."""
        inside: list[str] = []
        root = Path(os.path.realpath(self._root))
        for folder, below in zip((root, *root.parents), (None, root, *root.parents), strict=False):
            identity = _identity(folder)
            name = self._written.pop(identity, None) if identity is not None else None
            # data may be in the output and cache folders, beside what runs write there
            if name is not None and (identity not in (self._output, self._cache) or _is_part(below)):
                inside.append(name)
        if inside:
            self.notes.append(
                f"instance_data_dir {printable(self._root)} is inside {printable(inside[0])}, which runs write: "
                "its images are used, and new ones will be used at the next start"
            )

    def _enter(self, below: str, part_of: str | None) -> None:
        folder = f"{self._root}/{below}"
        try:
            status = os.stat(folder)  # noqa: PTH116
            identity = (status.st_dev, status.st_ino)
            if identity in self._entered:
                return
            self._entered.add(identity)
            with os.scandir(folder) as listed:
                entries = list(listed)
        except OSError as error:
            if part_of is None:
                self._cannot_use(below.rstrip("/") or folder, error)
            return
        part_of = part_of or self._written.get(identity)
        run_parts = {} if part_of is not None else self._parts_of_runs(folder, identity, entries)
        if part_of is None and not run_parts:
            entries = self._take_plain(entries, below)
        for entry in entries:
            self._take(entry, below, run_parts.get(entry.name) if run_parts else part_of)

    def _take_plain(self, entries: Collection[os.DirEntry[str]], below: str) -> list[os.DirEntry[str]]:
        """Take images and other files as :meth:`_take` does, in half its time; return all entries that are less plain.

        There may be a million of them.
        """
        start, suffixes, images, others = f"{self._root}/{below}", self._suffixes, self.images, self.others
        left: list[os.DirEntry[str]] = []
        for entry in entries:
            name = entry.name
            lower = name.lower()
            try:
                is_plain = not lower.startswith(".") and entry.is_file(follow_symlinks=False)
            except OSError:
                is_plain = False
            if not is_plain or lower in SYSTEM_NAMES:
                left.append(entry)
            elif lower[lower.rfind(".") :] in suffixes:  # a name without a dot gives its last letter, which is none
                images.append(LocalImage(key=below + name, file=start + name))
            else:
                others.append(below + name)
        return left

    def _take(self, entry: os.DirEntry[str], below: str, part_of: str | None) -> None:
        name = entry.name
        if is_system(name):
            if part_of is None:
                self.skipped.append(below + name)
            return
        try:
            if entry.is_dir():
                self._waiting.append((f"{below}{name}/", part_of or self._linked_into(entry)))
                return
            is_file = entry.is_file()
        except OSError as error:  # for example a loop of links
            if part_of is None:
                self._cannot_use(below + name, error)
            return
        is_image = suffix_of(name) in self._suffixes
        if part_of is not None:
            self.left_out[part_of] += is_image
        elif is_file and is_image:
            self.images.append(LocalImage(key=below + name, file=f"{self._root}/{below}{name}"))
        elif is_file:
            self.others.append(below + name)
        else:
            self._take_odd(entry, below + name, is_image=is_image)

    def _take_odd(self, entry: os.DirEntry[str], below: str, *, is_image: bool) -> None:
        """Report an entry that is neither file nor folder, if it was meant as an image or a folder of images."""
        is_link = entry.is_symlink()
        if is_image or (is_link and not suffix_of(entry.name)):
            reason = "a broken link" if is_link else "a pipe, socket or device"
            self.unusable.append(f"{below} ({reason})")
        else:
            self.others.append(below)

    def _cannot_use(self, name: str, error: OSError) -> None:
        self.unusable.append(f"{name} ({(error.strerror or str(error)).lower()})")

    def _linked_into(self, entry: os.DirEntry[str]) -> str | None:
        """Return the written folder that a link leads into; plain folders need no such check."""
        if not self._written or not entry.is_symlink():
            return None
        target = Path(os.path.realpath(entry.path))
        identities = (_identity(path) for path in (target, *target.parents))
        return next((self._written[one] for one in identities if one in self._written), None)

    def _parts_of_runs(self, folder: str, identity: _Identity, entries: Collection[os.DirEntry[str]]) -> dict[str, str]:
        """Return entries of a folder that an earlier run wrote, by name: its results, or its caches."""
        names = {entry.name for entry in entries}
        parts: dict[str, str] = {}
        checkpoints = [name for name in names if name.startswith("checkpoint-")]
        if (
            identity == self._output
            or {"metrics.jsonl", "validation"} <= names
            or any(os.path.exists(f"{folder}/{name}/resume/state.json") for name in checkpoints)  # noqa: PTH110
        ):
            parts |= {name: OTHER_RUN for name in names if _OF_A_RUN.fullmatch(name)}
        if "index.sqlite" in names:
            parts |= dict.fromkeys(names & _OF_A_CACHE, OTHER_CACHE)
        return parts


def _is_part(folder: Path | None) -> bool:
    return folder is not None and (folder.name in _OF_A_CACHE or bool(_OF_A_RUN.fullmatch(folder.name)))


def _identity(folder: str | Path) -> _Identity | None:
    """Return what identifies a folder under all of its names; None if it does not exist."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
