"""Paths as users write them: ``~`` and placeholders are filled in, and what is left of either is an error.

Nothing here looks at the disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from difftrain.config.user_values import NAMES, fill_placeholders, left_over
from difftrain.errors import ConfigError

PATHS_AS_TEXT = frozenset({"pretrained_model_name_or_path", "resume_from_checkpoint", "plugins"})
"""Keys that hold a path, or something else, so that their type is a text."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_NAMES = {"\t": "a tab", "\n": "a line break", "\r": "a line break", "\b": "a backspace", "\f": "a form feed"}
_DRIVE_ALONE = re.compile(r"[A-Za-z]:[^\\/]")


def holds_path(key: str, annotation: Any) -> bool:
    """Whether the values of a key are paths."""
    return key in PATHS_AS_TEXT or _mentions(annotation, Path)


def is_optional(annotation: Any) -> bool:
    """Whether a key may be null."""
    return type(None) in get_args(annotation)


def _mentions(annotation: Any, cls: type) -> bool:
    return annotation is cls or any(_mentions(part, cls) for part in get_args(annotation))


def expand(value: Any, known: Mapping[str, str | None]) -> Any:
    """A path, or a list or object of them, as the rest of the program takes it.

    Args:
        known: What placeholders stand for, as :func:`fill_placeholders` takes it.

    Raises:
        ConfigError: If a path is empty, or has something in it that is not filled in or was never meant.
    """
    if isinstance(value, str):
        return expand_path(value, known)
    if isinstance(value, list):
        return [expand(item, known) for item in value]
    if isinstance(value, dict):
        return {key: expand(item, known) for key, item in value.items()}
    return value


def expand_path(text: str, known: Mapping[str, str | None]) -> str:
    """One path with its placeholders and its home folder filled in.

    Raises:
        ConfigError: As :func:`expand`.
    """
    _check_escapes(text)
    # what is filled in may hold anything, a dollar too, so it is looked for in the text as written
    if strange := left_over(text, known):
        raise ConfigError(f"{_shown(text)}: {strange} is not filled in\nhint: {_advice(strange, known)}")
    filled = str(fill_placeholders(text, known))
    if not filled.strip():
        raise ConfigError(
            f"must be a path, got {_shown(text)}\nhint: leave the key out for its default, or write . for here"
        )
    _check_escapes(filled)
    if not filled.startswith("~"):
        return filled
    home = os.path.expanduser(filled)  # noqa: PTH111 - Path.expanduser raises where this leaves the text as it is
    if home.startswith("~"):
        user = filled.partition("/")[0]
        raise ConfigError(
            f"{_shown(text)}: {user} is no home folder on this machine\nhint: write the whole path, or ./{user} for a "
            "folder of that name"
        )
    return home


def _advice(strange: str, known: Mapping[str, str | None]) -> str:
    name = strange.strip("${}")
    if strange.startswith("$") and re.fullmatch(NAMES, name):
        return f"write {{env:{name}}} for the environment variable"
    listed = ", ".join(f"{{{key}}}" for key in known)
    return f"known here: {listed}, and {{env:NAME}} for an environment variable"


def _check_escapes(text: str) -> None:
    """What a backslash leaves in JSON where ``\\\\`` was meant."""
    found = _CONTROL.search(text)
    if found is not None:
        what = _CONTROL_NAMES.get(found.group(), f"a control character ({found.group()!r})")
        raise ConfigError(f"{_shown(text)} has {what} in it{_SLASHES}")
    if _DRIVE_ALONE.match(text):
        raise ConfigError(f"{_shown(text)} has lost the backslash behind its drive{_SLASHES}")


_SLASHES = "\nhint: in JSON a backslash is written twice; or write / between folders, as in C:/data/new"


def _shown(text: str) -> str:
    return ascii(text) if not text.isprintable() else f'"{text}"'
