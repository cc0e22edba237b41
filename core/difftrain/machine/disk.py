"""Whether the disks have room for what a run is going to write, found out before it begins."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from difftrain.errors import MachineError

BLOCK = 4096
"""Bytes that files are rounded up to on common file systems."""
WORTH_TELLING = 1 << 30
"""Bytes from which on users are told before they are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Files that will be written into a folder."""

    folder: Path
    """Need not be there yet."""
    what: str
    """What they are, such as ``latents of 'edits'``."""
    files: int
    bytes: int
    """Of all of them together; 0 where nobody can say."""
    option: str
    """The option that puts them elsewhere."""


def files_bytes(count: int, each: int) -> int:
    """Room that files of one size take, in bytes; 0 for files of an unknown size."""
    return count * -(-each // BLOCK) * BLOCK


def check_room(needs: Iterable[Need]) -> None:
    """Compare what will be written with what is free, on each file system.

    Raises:
        MachineError: Naming the folders, what they need and what is free, of every file system that has too little.
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
                f"not enough room on the disk of {folder}: {describe_bytes(needed)} are needed and "
                f"{describe_bytes(free)} are free ({listed})\n"
                f"hint: free some space, or set {options} to a folder on another disk"
            )
    if problems:
        raise MachineError(*problems)


def describe_needs(needs: Iterable[Need]) -> str | None:
    """One line of what will be written, when it is much; None else."""
    large = [need for need in needs if need.bytes]
    total = sum(need.bytes for need in large)
    if total <= WORTH_TELLING:
        return None
    listed = ", ".join(f"{need.what} {describe_bytes(need.bytes)} in {need.folder}" for need in large)
    return f"{describe_bytes(total)} of disk will be written: {listed}"


def describe_bytes(count: int) -> str:
    """``1.5 GiB``, ``12 MiB``."""
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
    """What is there of a folder's path."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
