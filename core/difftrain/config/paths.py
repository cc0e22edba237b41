"""Paths as users write them: fills in ``~`` and placeholders, and refuses what is left of either.

Does not look at the disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from difftrain.config.user_values import NAMES, fill_placeholders, left_over
from difftrain.errors import ConfigError

PATHS_AS_TEXT = frozenset(
    {
        "pretrained_model_name_or_path",
        "pretrained_transformer_model_name_or_path",
        "resume_from_checkpoint",
        "plugins",
    }
)
"""Keys whose value may be a path or something else, so that their type is a text."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_NAMES = {"\t": "a tab", "\n": "a line break", "\r": "a line break", "\b": "a backspace", "\f": "a form feed"}
_DRIVE_ALONE = re.compile(r"[A-Za-z]:[^\\/]")


def holds_path(key: str, annotation: Any) -> bool:
    """Return whether the values of a key are paths."""
    return key in PATHS_AS_TEXT or _mentions(annotation, Path)


def is_optional(annotation: Any) -> bool:
    """Return whether a key may be null."""
    return type(None) in get_args(annotation)


def _mentions(annotation: Any, cls: type) -> bool:
    return annotation is cls or any(_mentions(part, cls) for part in get_args(annotation))


def expand(value: Any, known: Mapping[str, str | None]) -> Any:
    """Expand a path, or a list or object of paths.

    Args:
        known: Values of placeholders, as for :func:`fill_placeholders`.

    Raises:
        ConfigError: If a path is empty, or contains something that cannot be filled in or cannot be meant.
    """
    if isinstance(value, str):
        return expand_path(value, known)
    if isinstance(value, list):
        return [expand(item, known) for item in value]
    if isinstance(value, dict):
        return {key: expand(item, known) for key, item in value.items()}
    return value


def expand_path(text: str, known: Mapping[str, str | None]) -> str:
    """Fill in the placeholders and the home folder of one path.

    Raises:
        ConfigError: As :func:`expand`.
    """
    _check_escapes(text)
    # a filled-in value may contain anything, even a dollar sign, so look in the text as written
    if strange := left_over(text, known):
        raise ConfigError(f"{_shown(text)}: {strange} cannot be filled in\nhint: {_advice(strange, known)}")
    filled = str(fill_placeholders(text, known))
    if not filled.strip():
        raise ConfigError(
            f"must be a path, got {_shown(text)}\n"
            "hint: leave the key out for its default, or write . for the current folder"
        )
    _check_escapes(filled)
    if not filled.startswith("~"):
        return filled
    home = os.path.expanduser(filled)  # noqa: PTH111 - Path.expanduser raises where this leaves the text as it is
    if home.startswith("~"):
        user = filled.partition("/")[0]
        raise ConfigError(
            f"{_shown(text)}: {user} is not a home folder on this machine\nhint: write the full path, or ./{user} for "
            "a folder of that name"
        )
    return home


def _advice(strange: str, known: Mapping[str, str | None]) -> str:
    name = strange.strip("${}")
    if strange.startswith("$") and re.fullmatch(NAMES, name):
        return f"write {{env:{name}}} for the environment variable"
    listed = ", ".join(f"{{{key}}}" for key in known)
    return f"placeholders here: {listed}, and {{env:NAME}} for an environment variable"


def _check_escapes(text: str) -> None:
    """Refuse what single backslashes leave behind in JSON where ``\\\\`` was meant."""
    found = _CONTROL.search(text)
    if found is not None:
        what = _CONTROL_NAMES.get(found.group(), f"a control character ({found.group()!r})")
        raise ConfigError(f"{_shown(text)} contains {what}{_SLASHES}")
    if _DRIVE_ALONE.match(text):
        raise ConfigError(f"{_shown(text)} has lost the backslash after its drive letter{_SLASHES}")


_SLASHES = "\nhint: write a backslash twice in JSON; or write / between folders, as in C:/data/new"


def _shown(text: str) -> str:
    return ascii(text) if not text.isprintable() else f'"{text}"'
