"""Writes the page: one HTML file that works without a network, beside a folder of thumbnails.

Names and captions reach the page as JSON in a block that is never run, and the script shows them as text only. A
content security policy lets the browser run nothing but that script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from difftrain.data.caching.tensor_cache import write_atomically
from difftrain.errors import ConfigError, MachineError, printable
from difftrain.machine.folders import check_writable
from difftrain.machine.retries import refusal

PAGE = "index.html"
THUMBNAILS = "thumbnails"
MARK = '<meta name="generator" content="difftrain pair doctor">'
_SPECIAL = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def check_page_folder(folder: Path, data_folders: Mapping[str, Path]) -> None:
    """Check, before anything is read, that the page can be written.

    Args:
        data_folders: Folders of images, by the id of their dataset; thumbnails there would become data.

    Raises:
        ConfigError: If the folder lies in one of them, or has a page of someone else.
        MachineError: If it cannot be written.
    """
    for dataset, data in data_folders.items():
        if folder.resolve().is_relative_to(data.resolve()):
            raise ConfigError(
                f"--html {printable(folder)} lies in instance_data_dir of dataset {dataset!r}, so its thumbnails would "
                "become data\nhint: name a folder outside, such as pair-doctor"
            )
    page = folder / PAGE
    try:
        if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace")[:2000]:
            raise ConfigError(
                f"--html {printable(folder)}: {PAGE} there was not written by difftrain, so it is not replaced\n"
                "hint: name another folder"
            )
    except OSError as error:
        raise MachineError(refusal(f"--html {printable(page)} cannot be read", error)) from error
    check_writable(folder, "--html")


def write_page(folder: Path, data: Mapping[str, Any]) -> Path:
    """Write the page and return its path.

    Raises:
        DataError: If it cannot be written.
    """
    page = folder / PAGE
    write_atomically(page, page_text(data).encode("utf-8"))
    return page


def page_text(data: Mapping[str, Any]) -> str:
    """Return the page; nothing of the data appears in it but as JSON."""
    parts = files("difftrain.doctor").joinpath("page_files")
    style, script, frame = (
        parts.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    filled = frame.replace("{{mark}}", MARK).replace("{{digest}}", digest)
    before, _, after = filled.replace("{{style}}", style).replace("{{script}}", script).partition("{{data}}")
    return before + as_inert_json(data) + after


def as_inert_json(data: Mapping[str, Any]) -> str:
    """Return ASCII JSON without any character that HTML gives a meaning."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for character, escape in _SPECIAL.items():
        text = text.replace(character, escape)
    return text
