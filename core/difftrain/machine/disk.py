"""Checks before a run that the disks have room for what it will write."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from difftrain.errors import MachineError

BLOCK = 4096
"""Block size of common file systems; files are rounded up to it."""
WORTH_TELLING = 1 << 30
"""Bytes from which on users are told before they are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Files that will be written into a folder."""

    folder: Path
    """May not exist yet."""
    what: str
    """Description, such as ``latents of 'edits'``."""
    files: int
    bytes: int
    """Total size of the files; 0 if unknown."""
    option: str
    """The option that moves them elsewhere."""
    otherwise: str = ""
    """How to do without them, as part of a hint."""


def files_bytes(count: int, each: int) -> int:
    """Return the room that files of one size take, in bytes; 0 for files of unknown size."""
    return count * -(-each // BLOCK) * BLOCK


def check_room(needs: Iterable[Need]) -> None:
    """Compare what will be written with what is free, on each file system.

    Raises:
        MachineError: For every file system with too little room; names the folders, what they need and what is free.
    """
    problems = []
    for sharing in _by_file_system(needs).values():
        needed = sum(need.bytes for need in sharing)
        folder = sharing[0].folder
        free = shutil.disk_usage(_nearest(folder)).free
        if needed > free:
            listed = ", ".join(f"{need.what} {describe_bytes(need.bytes)} in {need.folder}" for need in sharing)
            options = " or ".join(dict.fromkeys(need.option for need in sharing))
            problems.append(
                f"not enough room on the disk of {folder}: {describe_bytes(needed)} needed, "
                f"{describe_bytes(free)} free ({listed})\n"
                f"hint: free some space, or set {options} to a folder on another disk{_otherwise(sharing)}"
            )
    if problems:
        raise MachineError(*problems)


def describe_needs(needs: Iterable[Need]) -> str | None:
    """Return one line on what will be written and what is free, if it is much; else None."""
    large = [need for need in needs if need.bytes]
    total = sum(need.bytes for need in large)
    if total <= WORTH_TELLING:
        return None
    listed = ", ".join(f"{need.what} {describe_bytes(need.bytes)} in {need.folder}" for need in large)
    free = [shutil.disk_usage(_nearest(sharing[0].folder)).free for sharing in _by_file_system(large).values()]
    return (
        f"{describe_bytes(total)} will be written to disk: {listed}; "
        f"{' and '.join(map(describe_bytes, free))} {'is' if len(free) == 1 else 'are'} free{_otherwise(large)}"
    )


def _otherwise(needs: Iterable[Need]) -> str:
    return "".join(dict.fromkeys(f"; {need.otherwise}" for need in needs if need.otherwise))


def describe_bytes(count: int) -> str:
    """Return ``1.5 GiB``, ``12 MiB``."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    if count >= 1 << 20:
        return f"{-(-count // (1 << 20))} MiB"
    return f"{-(-count // (1 << 10))} KiB"


def _by_file_system(needs: Iterable[Need]) -> dict[int, list[Need]]:
    found: dict[int, list[Need]] = defaultdict(list)
    for need in needs:
        if need.bytes:
            found[_nearest(need.folder).stat().st_dev].append(need)
    return found


def _nearest(folder: Path) -> Path:
    """Return the nearest existing part of a folder's path."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
