"""Reads config files, JSON with comments, and checks a run: flags over file, every problem collected."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import json5

from difftrain.config.known_keys import RUN_TABLES, KnownKeys, is_unset
from difftrain.config.line_numbers import KeyPath, key_lines
from difftrain.config.messages import shown
from difftrain.config.paths import expand, expand_path
from difftrain.config.problems import Problems
from difftrain.config.schema import RunConfig
from difftrain.config.section import Section, check_section
from difftrain.config.user_values import coerce, plain_key
from difftrain.errors import ConfigError

DEFAULT_PATH = Path("config/config.json")
FlagValue = str | bool | list[str]
Names = Mapping[str, Collection[str]]


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A parsed file with the lines of its keys."""

    path: Path | None
    """None if there is no file."""
    content: Any
    lines: Mapping[KeyPath, int]

    def where(self, *path: str | int) -> str:
        """Return ``config/config.json:12: `` for a key that exists, else ``config/config.json: ``."""
        line = self.lines.get(path)
        return f"{self.path}:{line}: " if line else f"{self.path}: "


EMPTY_FILE = ConfigFile(path=None, content={}, lines={})
"""The file of a run described by flags alone."""


def read_config_file(path: Path) -> ConfigFile:
    """Parse JSON with comments and trailing commas.

    Raises:
        ConfigError: If the file is missing or unreadable, is not JSON, or has a key twice in one object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist\nhint: relative paths start at {Path.cwd()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        content = json5.loads(text, allow_duplicate_keys=False)
    except ValueError as error:
        raise ConfigError(f"{path}{_parser_complaint(str(error))}\nhint: JSON with comments is expected") from error
    return ConfigFile(path=path, content=content, lines=key_lines(text))


def _parser_complaint(text: str) -> str:
    """Turn ``<string>:2 Unexpected "x" at column 5`` into ``:2: unexpected "x" at column 5``."""
    place, _, what = text.removeprefix("<string>").partition(" ") if text.startswith("<string>:") else ("", "", text)
    return f"{place}: {what[:1].lower()}{what[1:]}"


def find_run_file(path: Path | None) -> ConfigFile:
    """Return the requested run file, else ``config/config.json`` if it exists, else an empty one.

    Raises:
        ConfigError: If it cannot be read, or is not an object.
    """
    if path is None:
        if not DEFAULT_PATH.is_file():
            return EMPTY_FILE
        path = DEFAULT_PATH
    file = read_config_file(path)
    if not isinstance(file.content, dict):
        raise ConfigError(f'{path} must be an object {{"key": value}}, got {shown(file.content)}')
    return _unwrapped(file)


def _unwrapped(file: ConfigFile) -> ConfigFile:
    """Return the run inside a file that a web interface saved: ``{"_metadata": {...}, "config": {...}}``."""
    if set(file.content) != {"_metadata", "config"} or not isinstance(file.content["config"], dict):
        return file
    lines = {path[1:]: line for path, line in file.lines.items() if path[0] == "config"}
    return ConfigFile(path=file.path, content=file.content["config"], lines=lines)


def plugin_switches(file: ConfigFile, flags: Mapping[str, FlagValue]) -> tuple[list[str], list[str]]:
    """Return plugin files and disabled plugins, which must be known before the schema is.

    Values of the wrong type are left to the check of the whole file.

    Raises:
        ConfigError: If the path of a plugin file cannot be one the user meant.
    """
    asked: dict[str, Any] = {plain_key(key): value for key, value in file.content.items()} | dict(flags)
    found = []
    for key in ("plugins", "disable_plugin"):
        value = coerce(tuple[str, ...], asked.get(key), lists_as_text=True)
        found.append([item for item in value if isinstance(item, str)] if isinstance(value, list) else [])
    problems = Problems()
    known = _run_placeholders(asked, {})
    with problems.catching("plugins: "):
        found[0] = expand(found[0], known)
    problems.raise_all()
    return found[0], found[1]


def load_run(
    file: ConfigFile,
    flags: Mapping[str, FlagValue],
    schema: type[RunConfig],
    names: Names,
    problems: Problems,
    *,
    tables: KnownKeys = RUN_TABLES,
    default_flavours: Mapping[str, str] | None = None,
    needs_length: bool = True,
) -> RunConfig | None:
    """Return the run's options, flags over file.

    Args:
        flags: By plain key; values are texts as typed.
        schema: The core's options merged with the plugins'.
        names: Registered names by key, from :meth:`Registry.names_by_key`.
        tables: Keys that no options class has.
        default_flavours: By family, the flavour to use when a run names none.
        needs_length: Whether the config must say how long to train.

    Returns:
        None if not even the valid keys make a config; the problems say why.
    """
    raw_keys = {plain_key(key): key for key in file.content}

    def where(key: str) -> str:
        if key in flags:
            return f"flag --{key}: "
        return file.where(raw_keys.get(key, key)) if file.path else ""

    values: dict[str, Any] = {}
    for key, value in file.content.items():
        plain = plain_key(key)
        if plain in values and values[plain] != value:
            problems.add(f"{file.where(key)}{plain} is given twice, as {shown(values[plain])} and {shown(value)}")
        values[plain] = value
    renamed = {tables.renamed.get(key, key) for key in flags}
    values = {key: value for key, value in values.items() if tables.renamed.get(key, key) not in renamed}
    values |= flags
    _choose_flavour(values, default_flavours or {}, problems)
    known = _run_placeholders(values, {"output_dir": str(schema.model_fields["output_dir"].get_default())})
    section = Section(values=values, where=where, text_lists=tuple(flags), placeholders=known)
    run = check_section(section, schema, tables, names, problems)
    if run is None or not needs_length or run.max_train_steps or run.num_train_epochs:
        return run
    if problems.wrong_keys.isdisjoint(("max_train_steps", "num_train_epochs")):
        problems.add(f"{where('')}neither max_train_steps nor num_train_epochs is set; set one of them")
    return None


def _choose_flavour(values: dict[str, Any], defaults: Mapping[str, str], problems: Problems) -> None:
    """Fill in the family's default flavour if none is named."""
    family = _first(values, "model_family", "model")
    if isinstance(family, str) and family in defaults and is_unset(_first(values, "model_flavour", "flavour")):
        values.pop("flavour", None)
        values["model_flavour"] = defaults[family]
        problems.note(f"model_flavour is not set: using {defaults[family]!r}, the default of {family!r}")


def _first(values: Mapping[str, Any], *keys: str) -> Any:
    """Return the value of the first key that has one."""
    return next((values[key] for key in keys if not is_unset(values.get(key))), None)


def _run_placeholders(values: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str | None]:
    """Return the values of placeholders in a run, as far as they are valid; the check of the keys reports the rest.

    Args:
        known: Values for placeholders that the run does not set.
    """
    named: dict[str, str | None] = {
        "model_family": _text(_first(values, "model_family", "model")),
        "model_flavour": _text(_first(values, "model_flavour", "flavour")),
    }
    output = _text(_first(values, "output_dir"))
    if output is None:
        return {**named, "output_dir": known.get("output_dir", "output")}
    try:
        return {**named, "output_dir": expand_path(output, named)}
    except ConfigError:
        # reported where the key itself is checked
        return {**named, "output_dir": output}


def _text(value: object) -> str | None:
    """Return the value if it can be a name; anything else is reported when its own key is checked."""
    return value if isinstance(value, str) else None
