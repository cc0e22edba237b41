"""The folder of a run's results: what it contains, and how an earlier run's results are kept beside it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from difftrain.errors import MachineError
from difftrain.machine.retries import refusal
from difftrain.model.low_rank.lora_file import ADAPTER_FILE

METRICS_FILE = "metrics.jsonl"
VALIDATION_FOLDER = "validation"
RESUME_FOLDER = "resume"
"""Folder in a checkpoint that only difftrain reads. Checkpoints of other programs do not have it."""
EXPORT_FOLDER = ".adapter.partial"
"""Folder where an adapter is written before its files are moved to their place."""
UPLOAD_FOLDER = ".upload-"
"""Beginning of the names of folders whose files wait for their upload."""
CARD_FILE = "README.md"
"""The model card."""
CARD_IMAGES = "model-card"
"""Folder of the images that the model card shows."""
CARD_MARK = "<!-- difftrain wrote this page"
"""A model card without it has become the user's own."""
_NAME = re.compile(r"checkpoint-(\d+)")
_DRAWN_AT = re.compile(r"step-(\d+)")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return complete difftrain checkpoints, oldest step first."""
    return [path for path in _checkpoint_folders(output_dir) if (path / RESUME_FOLDER).is_dir()]


def foreign_checkpoints(output_dir: Path) -> list[Path]:
    """Return folders that are named like our checkpoints but were written by another program, oldest step first."""
    return [path for path in _checkpoint_folders(output_dir) if not (path / RESUME_FOLDER).is_dir()]


def _checkpoint_folders(output_dir: Path) -> list[Path]:
    if not output_dir.is_dir():
        return []
    return sorted((path for path in output_dir.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def exported_files(output_dir: Path) -> list[Path]:
    """Return the files of the finished run's adapter: those that diffusers looks for, or that a checkpoint has too."""
    kinds = {path.name for folder in list_checkpoints(output_dir) for path in folder.iterdir()} - {RESUME_FOLDER}
    return [path for name in sorted({ADAPTER_FILE} | kinds) if (path := output_dir / name).exists()]


def exported_adapter(output_dir: Path) -> Path:
    """Return the path of the finished run's adapter for messages: its file, or the folder if it has several."""
    files = exported_files(output_dir)
    return files[0] if len(files) == 1 else output_dir


def is_own_card(path: Path) -> bool:
    """Return whether difftrain wrote this page, so that it may write it again."""
    try:
        return CARD_MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _published_files(output_dir: Path) -> list[Path]:
    """Return the finished run's adapter and model card, as far as they exist; a page of the user's own is none."""
    card = output_dir / CARD_FILE
    pages = [card, output_dir / CARD_IMAGES] if is_own_card(card) else []
    return [*exported_files(output_dir), *pages]


def newest_sheet(output_dir: Path) -> Path | None:
    """Return the image sheet of the run's last complete validation, if there is one."""
    sheets = [folder / "sheet.png" for folder in _drawn_steps(output_dir)]
    return next((sheet for sheet in reversed(sheets) if sheet.is_file()), None)


def is_checkpoint_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match, "only for what list_checkpoints gives"
    return int(match[1])


def remove_leftovers(output_dir: Path) -> None:
    """Delete what a kill left of checkpoints that were being written or deleted."""
    for pattern in (
        EXPORT_FOLDER,
        ".checkpoint-*.partial",
        ".*.removing",
        ".checkpoint-*.trial",
        f"{UPLOAD_FOLDER}*",
    ):
        for leftover in output_dir.glob(pattern):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with suppress(OSError):
                    leftover.unlink()


def set_aside(output_dir: Path) -> Path | None:
    """Move an earlier run's results into ``previous-K``, so that starting over loses nothing."""
    others = [output_dir / name for name in (METRICS_FILE, VALIDATION_FOLDER)]
    results = [*_checkpoint_folders(output_dir), *_published_files(output_dir), *others]
    results = [path for path in results if path.exists()]
    return _move_aside(output_dir, results) if results else None


def set_newer_aside(output_dir: Path, step: int) -> Path | None:
    """Move results beyond ``step`` into ``previous-K``: a run resumed at ``step`` must not mistake them for its own.

    These are later checkpoints, the adapter made after them, and images, even without a checkpoint. The metrics are
    copied there, since the run's own file continues from ``step``.
    """
    newer = [path for path in list_checkpoints(output_dir) if step_of(path) > step]
    images = [path for path, drawn_at in _drawn_steps(output_dir).items() if drawn_at > step]
    if not newer and not images:
        return None
    folder = _move_aside(output_dir, [*newer, *(_published_files(output_dir) if newer else []), *images])
    metrics = output_dir / METRICS_FILE
    try:
        if metrics.exists():
            shutil.copy(metrics, folder)
    except OSError as error:
        raise MachineError(refusal(f"{metrics} cannot be copied into {folder}", error)) from error
    return folder


def _drawn_steps(output_dir: Path) -> dict[Path, int]:
    """Return folders of validation images with their steps, oldest step first."""
    found = (output_dir / VALIDATION_FOLDER).glob("step-*")
    steps = {path: int(match[1]) for path in found if (match := _DRAWN_AT.fullmatch(path.name))}
    return dict(sorted(steps.items(), key=lambda item: item[1]))


def _move_aside(output_dir: Path, paths: Sequence[Path]) -> Path:
    number = 1
    while (output_dir / f"previous-{number}").exists():
        number += 1
    folder = output_dir / f"previous-{number}"
    try:
        folder.mkdir()
        for path in paths:
            if path.exists():
                kept = folder / path.relative_to(output_dir)
                kept.parent.mkdir(exist_ok=True)
                path.rename(kept)
    except OSError as error:
        what = f"output_dir {output_dir}: {error.filename} cannot be moved into {folder}"
        raise MachineError(refusal(what, error)) from error
    return folder
