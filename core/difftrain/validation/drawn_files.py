"""Validation images as files: their names, and a mark of what each shows, for the base column of later steps."""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from difftrain.data.caching.tensor_cache import write_atomically
from difftrain.data.files.pixels import UNREADABLE

LONGEST_NAME = 120
"""Bytes of a scene's name; disks allow 255, and numbers and the extension follow it."""
_MARK = "difftrain-scene"
"""Key of the PNG text that holds a scene's identity."""
_PUNCTUATION = frozenset('<>:"/\\|?*')
"""Characters that Windows refuses in a name, or that separate folders anywhere."""
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
"""Names that Windows takes for devices, with any extension."""


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def file_name(scene_name: str, seed_number: int) -> str:
    """Return the name without extension; ``seed_number`` counts from 1, and the first is left out."""
    return scene_name if seed_number == 1 else f"{scene_name}-seed-{seed_number}"


def safe_file_name(text: str) -> str:
    """Return a name that Linux, macOS and Windows all take for one file in its folder.

    Args:
        text: Anything: a prompt, an image's name and folder; may be empty or not valid UTF-8.

    Returns:
        1 to :data:`LONGEST_NAME` bytes of UTF-8. Safe names stay unchanged. Two texts may give one name: see
        :func:`disk_key`.
    """
    name = "".join(map(_safe_character, unicodedata.normalize("NFC", text)))
    name = _trimmed(name) or "unnamed"
    if _DEVICES.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    end = "-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return _trimmed(name.encode()[: LONGEST_NAME - len(end)].decode(errors="ignore")) + end


def disk_key(name: str) -> str:
    """Return a key that is equal for names of one file on a disk that ignores case or the form of accents."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFC", name).upper().casefold())


def save_drawn(image: Image.Image, path: Path, identity: str) -> None:
    """Write a PNG that records which scene it shows, complete or not at all.

    Raises:
        DataError: If it cannot be written; names it.
    """
    marks = PngInfo()
    marks.add_text(_MARK, identity)
    save_png(image, path, marks)


def save_png(image: Image.Image, path: Path, marks: PngInfo | None = None) -> None:
    """Write a PNG, complete or not at all.

    Raises:
        DataError: If it cannot be written; names it.
    """
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=marks)
    write_atomically(path, stream.getvalue())


def open_drawn(path: Path, identity: str) -> Image.Image | None:
    """Return the image, if it exists, is complete, and shows this scene."""
    try:
        with Image.open(path) as image:
            if image.info.get(_MARK) != identity:
                return None
            return image.convert("RGB")
    except UNREADABLE:
        return None


def _safe_character(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    # control and formatting characters, lone surrogates, line breaks
    return "-" if character in _PUNCTUATION or category[0] == "C" or category in ("Zl", "Zp") else character


def _trimmed(name: str) -> str:
    """Remove what hides a file or looks like an option at the start of a name, and what gets lost at its end."""
    return name.lstrip(" .-").rstrip(" .")
