"""Values as users write them: converts texts to the key's type and fills in placeholders."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import json5
from pydantic import TypeAdapter, ValidationError

from difftrain.config.known_keys import is_unset
from difftrain.errors import ConfigError

_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None, "none": None}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
LONGEST_NUMBER = 400
"""Characters; Python refuses to parse whole numbers of several thousand digits, and no option needs one."""
NAMES = r"[A-Za-z_][A-Za-z0-9_]*"
_PLACEHOLDER = re.compile(rf"\{{((?:env:)?{NAMES})\}}")
_STRANGE = re.compile(rf"\$\{{[^{{}}]*\}}|\${NAMES}|\{{[^{{}}]*\}}")


def plain_key(key: str) -> str:
    """Turn ``--lora-rank`` and ``lora-rank`` into ``lora_rank``."""
    return key.strip().removeprefix("--").replace("-", "_")


def block_of_switch(value: object) -> object:
    """Return a block that may also be true or false: ``{"enable": true}``; empty if it is not set."""
    if is_unset(value):
        return {}
    return {"enable": value} if isinstance(value, bool) else value


def coerce(annotation: Any, value: object, *, lists_as_text: bool = False) -> object:
    """Return a text as the value that the type asks for; other values, and texts that do not fit exactly, unchanged.

    Args:
        annotation: Type of the key. A type that allows texts keeps them.
        lists_as_text: Also read ``a,b`` as a list, as flags write it.
    """
    if not isinstance(value, str):
        return value
    adapter = TypeAdapter(annotation)
    for candidate in _readings(value, lists_as_text=lists_as_text):
        try:
            adapter.validate_json(json.dumps(candidate), strict=True)
        except ValidationError:
            continue
        return candidate
    return value


def _readings(text: str, *, lists_as_text: bool) -> Iterator[object]:
    yield text
    stripped = text.strip()
    if stripped.lower() in _WORDS:
        yield _WORDS[stripped.lower()]
    if _NUMBER.fullmatch(stripped) and len(stripped) <= LONGEST_NUMBER:
        if stripped.lstrip("+-").isdecimal():
            yield int(stripped)
        if math.isfinite(float(stripped)):
            yield float(stripped)
    if stripped[:1] in ("[", "{"):
        try:
            yield json5.loads(stripped)
        except ValueError:
            return
    elif lists_as_text and stripped:
        items = [item.strip() for item in stripped.split(",")]
        yield items
        yield [float(item) if _NUMBER.fullmatch(item) else item for item in items]


def wrong_numbers(name: str, value: object) -> Iterator[str]:
    """Yield one sentence for each number that is NaN, infinite, or too large for a float.

    Args:
        name: Name of the key, which begins the sentences; a nested value is named ``key[0].inner``.
    """
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{name} must be a finite number, got {json.dumps(value)}"
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from wrong_numbers(f"{name}[{index}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from wrong_numbers(f"{name}.{key}", item)


def wrong_texts(name: str, value: object) -> Iterator[str]:
    """Yield one sentence for each text with a lone surrogate in it, which bytes that are not UTF-8 leave behind."""
    if isinstance(value, str) and not _is_whole(value):
        yield f"{name} must be a text in UTF-8, got {value!a}"
    elif isinstance(value, list | tuple):
        for item in value:
            yield from wrong_texts(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from wrong_texts(name, key)
            yield from wrong_texts(name, item)


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fill_placeholders(value: Any, known: Mapping[str, str | None]) -> Any:
    """Fill in every known ``{name}`` and every ``{env:NAME}``, in every text, however deeply nested.

    Args:
        known: Values of the names, None for one that is not set. Unknown names and all other braces stay unchanged.

    Raises:
        ConfigError: If a name or an environment variable is not set; names it.
    """
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: _filled(match, known), value)
    if isinstance(value, list):
        return [fill_placeholders(item, known) for item in value]
    if isinstance(value, dict):
        return {key: fill_placeholders(item, known) for key, item in value.items()}
    return value


def left_over(text: str, known: Mapping[str, str | None]) -> str | None:
    """Return the first ``$NAME``, ``${...}`` or ``{...}`` that :func:`fill_placeholders` would leave in a text."""
    for match in _STRANGE.finditer(text):
        placeholder = _PLACEHOLDER.fullmatch(match.group())
        name = placeholder.group(1) if placeholder else ""
        if not name.startswith("env:") and name not in known:
            return match.group()
    return None


def _filled(match: re.Match[str], known: Mapping[str, str | None]) -> str:
    name = match.group(1)
    if name.startswith("env:"):
        variable = name.removeprefix("env:")
        if variable not in os.environ:
            raise ConfigError(f"{match.group()}: the environment variable {variable} is not set")
        return os.environ[variable]
    if name not in known:
        return match.group()
    value = known[name]
    if value is None:
        raise ConfigError(f"{match.group()}: {name} is not set, so it cannot be filled in")
    return value
