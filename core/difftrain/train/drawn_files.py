"""Validation pictures as files, each marked with what it shows, so that a later step can lay it beside its own."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from difftrain.data.image import UNREADABLE

_MARK = "difftrain-scene"
"""Key of the PNG text that holds a scene's identity."""


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def file_name(scene_name: str, seed_number: int) -> str:
    """Without the extension; ``seed_number`` counts from 1, and the first is not named."""
    return scene_name if seed_number == 1 else f"{scene_name}-seed-{seed_number}"


def save_drawn(picture: Image.Image, path: Path, identity: str) -> None:
    """Write a PNG that tells which scene it shows."""
    marks = PngInfo()
    marks.add_text(_MARK, identity)
    picture.save(path, pnginfo=marks)


def open_drawn(path: Path, identity: str) -> Image.Image | None:
    """The picture, if it is there, complete, and shows this scene."""
    try:
        with Image.open(path) as picture:
            if picture.info.get(_MARK) != identity:
                return None
            return picture.convert("RGB")
    except UNREADABLE:
        return None
