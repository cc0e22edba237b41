"""Prompts of the validation images that are drawn in addition to those of samples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from difftrain.config.schema import RunConfig
from difftrain.errors import ConfigError, first_few

_EXAMPLE = '{"short-name": "the prompt"}'


def validation_prompts(config: RunConfig) -> dict[str, str]:
    """Return prompts by short name: the single one and those of the library file.

    Raises:
        ConfigError: If the library cannot be read, or is not a JSON object of texts with unique names.
    """
    library = _read_library(config.validation_prompt_library) if config.validation_prompt_library else {}
    if not config.validation_prompt:
        return library
    name = "prompt"
    while name in library:
        name = f"validation_{name}"
    return {name: config.validation_prompt} | library


def _read_library(path: Path) -> dict[str, str]:
    where = f"validation_prompt_library: {path}"
    content = _parsed(_text(path, where), where)
    if not isinstance(content, _Object):
        raise ConfigError(f"{where} must be one object like {_EXAMPLE}")
    pairs = content.pairs
    if not pairs:
        raise ConfigError(f"{where} has no prompts\nhint: write {_EXAMPLE}, or leave validation_prompt_library out")
    if broken := [ascii(name) for name, text in pairs if not _is_unicode(f"{name}{text}")]:
        raise ConfigError(
            f"{where}: {len(broken)} of {len(pairs)} prompts or names are not valid Unicode: {first_few(broken)}\n"
            "hint: an escape such as \\ud83c is half a character; write the character itself"
        )
    if wrong := [name for name, text in pairs if not isinstance(text, str)]:
        raise ConfigError(f"{where}: {len(wrong)} of {len(pairs)} prompts are not texts: {first_few(wrong)}")
    if doubled := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ConfigError(
            f"{where}: {len(doubled)} names are used more than once: {first_few(doubled)}\n"
            "hint: give each prompt its own name, or only the last one would be drawn"
        )
    return dict(pairs)


def _text(path: Path, where: str) -> str:
    if path.is_dir():
        raise ConfigError(f"{where} is a folder\nhint: name a JSON file in it, such as {path / 'prompts.json'}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{where} is not a file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{where} does not exist\nhint: relative paths start at {Path.cwd()}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where} is not UTF-8 (byte {error.start + 1})\nhint: save the file as UTF-8, also called Unicode"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error


def _parsed(text: str, where: str) -> Any:
    if not text.strip():
        raise ConfigError(f"{where} is empty\nhint: write {_EXAMPLE}, or leave validation_prompt_library out")
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except ValueError as error:
        raise ConfigError(f"{where} cannot be read as JSON ({error})") from error
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply; it must be one object like {_EXAMPLE}") from None


class _Object:
    """A JSON object as written: a dict would forget repeated names."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _is_unicode(text: str) -> bool:
    """Return False for half a character, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
