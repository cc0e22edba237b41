"""Which files of an output folder are uploaded: never what only difftrain reads, nor what is drawn of the data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from difftrain.errors import MachineError
from difftrain.machine.retries import refusal
from difftrain.output.output_dir import CARD_FILE, CARD_IMAGES, RESUME_FOLDER, UPLOAD_FOLDER, exported_files

Files = Mapping[str, Path]
"""Files by their path in the repository."""


def final_files(output_dir: Path, *, images: bool) -> dict[str, Path]:
    """Return the files of a finished run: adapter and card, for the top of the repository; empty without an adapter.

    Args:
        images: Whether the card's images go with it.
    """
    adapter = exported_files(output_dir)
    card = [output_dir / CARD_FILE, *(sorted((output_dir / CARD_IMAGES).glob("*.png")) if images else [])]
    found = [file for path in (*adapter, *card) for file in _files_in(path)] if adapter else []
    return {path.relative_to(output_dir).as_posix(): path for path in found}


def checkpoint_files(checkpoint: Path) -> dict[str, Path]:
    """Return the adapter's files of a checkpoint, for a folder of its name; its state for resuming stays here."""
    written = [path for path in sorted(checkpoint.iterdir()) if path.name != RESUME_FOLDER]
    files = [file for path in written for file in _files_in(path)]
    return {path.relative_to(checkpoint.parent).as_posix(): path for path in files}


def _files_in(path: Path) -> list[Path]:
    """Return a file, or those in a folder of a whole model."""
    return sorted(part for part in (path.rglob("*") if path.is_dir() else (path,)) if part.is_file())


def stage(files: Files, output_dir: Path, name: str) -> dict[str, Path]:
    """Return the same files under names that stay until they are uploaded, whatever happens to the checkpoint.

    Raises:
        MachineError: If they cannot be made.
    """
    folder = output_dir / f"{UPLOAD_FOLDER}{name}"
    staged = {}
    try:
        for path_in_repository, path in files.items():
            staged[path_in_repository] = folder / path_in_repository
            staged[path_in_repository].parent.mkdir(parents=True, exist_ok=True)
            staged[path_in_repository].unlink(missing_ok=True)
            _link_or_copy(path, staged[path_in_repository])
    except OSError as error:
        raise MachineError(refusal(f"{folder} cannot be written", error)) from error
    return staged


def unstage(output_dir: Path, name: str) -> None:
    """Remove what :func:`stage` made."""
    shutil.rmtree(output_dir / f"{UPLOAD_FOLDER}{name}", ignore_errors=True)


def _link_or_copy(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # a disk without hard links
        shutil.copyfile(path, new)
