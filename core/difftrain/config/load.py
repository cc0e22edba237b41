"""Reads the run file and the dataset list: JSON with comments, flags over file, every problem kept.

Nothing but these two files is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import json5

from difftrain.config.known_keys import KEYS_OF_TYPE, NOT_BUILT_VALUES
from difftrain.config.locate import KeyPath, key_lines
from difftrain.config.messages import shown
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.config.section import DATASET_TABLES, RUN_TABLES, Section, check_section, plain_key
from difftrain.config.values import coerce, fill_placeholders
from difftrain.errors import ConfigError

DEFAULT_PATH = Path("config/config.json")
FlagValue = str | bool | list[str]
Names = Mapping[str, Collection[str]]


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A parsed file and where its keys stand."""

    path: Path | None
    """None stands for no file at all."""
    content: Any
    lines: Mapping[KeyPath, int]

    def where(self, *path: str | int) -> str:
        """``config/config.json:12: `` for a key that is there, ``config/config.json: `` otherwise."""
        line = self.lines.get(path)
        return f"{self.path}:{line}: " if line else f"{self.path}: "


EMPTY_FILE = ConfigFile(path=None, content={}, lines={})
"""Stands for a run that is described by flags alone."""


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
    """``<string>:2 Unexpected "x" at column 5`` as ``:2: unexpected "x" at column 5``."""
    place, _, what = text.removeprefix("<string>").partition(" ") if text.startswith("<string>:") else ("", "", text)
    return f"{place}: {what[:1].lower()}{what[1:]}"


def find_run_file(path: Path | None) -> ConfigFile:
    """The run file: the one asked for, or ``config/config.json`` when there is one, or nothing.

    Raises:
        ConfigError: If it cannot be read, or is no object.
    """
    if path is None:
        if not DEFAULT_PATH.is_file():
            return EMPTY_FILE
        path = DEFAULT_PATH
    file = read_config_file(path)
    if not isinstance(file.content, dict):
        raise ConfigError(f'{path} must be an object {{"key": value}}, got {shown(file.content)}')
    return file


def plugin_switches(file: ConfigFile, flags: Mapping[str, FlagValue]) -> tuple[list[str], list[str]]:
    """Plugin files and plugins turned off: what must be known before the schema is.

    Values of another type are left to the check of the whole file.
    """
    asked: dict[str, Any] = {plain_key(key): value for key, value in file.content.items()} | dict(flags)
    found = []
    for key in ("plugins", "disable_plugin"):
        value = coerce(tuple[str, ...], asked.get(key), lists_as_text=True)
        found.append([item for item in value if isinstance(item, str)] if isinstance(value, list) else [])
    return found[0], found[1]


def load_run(
    file: ConfigFile, flags: Mapping[str, FlagValue], schema: type[RunConfig], names: Names, problems: Problems
) -> RunConfig | None:
    """The run's options, flags over file.

    Args:
        flags: By plain key, texts as typed.
        schema: The core's options merged with the plugins'.
        names: Registered names by key, of :meth:`Registry.names_by_key`.

    Returns:
        None when no config can be made even of the keys that are right; the problems say why.
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
    renamed = {RUN_TABLES.renamed.get(key, key) for key in flags}
    values = {key: value for key, value in values.items() if RUN_TABLES.renamed.get(key, key) not in renamed}
    values |= flags
    known = {
        "model_family": _text(values.get("model_family", values.get("model"))),
        "model_flavour": _text(values.get("model_flavour", values.get("flavour"))),
    }
    section = Section(values=_filled(values, known, where, problems), where=where, text_lists=tuple(flags))
    return check_section(section, schema, RUN_TABLES, names, problems)


def _filled(
    values: Mapping[str, Any], known: Mapping[str, str | None], where: Callable[[str], str], problems: Problems
) -> dict[str, Any]:
    """Values with their placeholders filled in; one that cannot be is kept as it is, with a problem."""
    filled = dict(values)
    for key, value in values.items():
        with problems.catching(f"{where(key)}{key}: "):
            filled[key] = fill_placeholders(value, known)
    return filled


def _text(value: object) -> str | None:
    """A name, if it is one; anything else is told when its own key is checked."""
    return value if isinstance(value, str) else None


def load_datasets(
    run: RunConfig, schema: type[DatasetConfig], names: Names, problems: Problems
) -> tuple[DatasetConfig, ...] | None:
    """The enabled entries of the dataset list.

    Returns:
        None when there was a problem: what the entries mean together can then not be said.
    """
    before = len(problems)
    try:
        file = read_config_file(run.data_backend_config)
    except ConfigError as error:
        problems.add(f"data_backend_config: {error}")
        return None
    if not isinstance(file.content, list):
        problems.add(f"{file.path} must be a list of datasets [{{...}}, ...], got {shown(file.content)}")
        return None
    entries = []
    for index, raw in enumerate(file.content):
        if not isinstance(raw, dict):
            problems.add(f"{file.where(index)}a dataset must be an object {{...}}, got {shown(raw)}")
        elif coerce(bool, raw.get("disabled", False)) is not True:
            entries.append(_load_entry(file, index, raw, run, schema, names, problems))
    complete = [entry for entry in entries if entry is not None]
    return tuple(complete) if len(problems) == before else None


def _load_entry(
    file: ConfigFile,
    index: int,
    raw: dict[str, Any],
    run: RunConfig,
    schema: type[DatasetConfig],
    names: Names,
    problems: Problems,
) -> DatasetConfig | None:
    raw_keys = {plain_key(key): key for key in raw}
    plain = {plain_key(key): value for key, value in raw.items()}
    name = _text(plain.get("id"))
    who = f"dataset {name!r}: " if name else f"dataset {index + 1}: "

    def where(key: str) -> str:
        return file.where(index, raw_keys.get(key, key)) + who

    known = {"model_family": run.model_family, "model_flavour": run.model_flavour, "id": name}
    values = _filled(plain, known, where, problems)
    unbuilt_type = values.get("type") in NOT_BUILT_VALUES["type"] and values["type"] not in names.get("type", ())
    if unbuilt_type:
        problems.not_built(f"type {values['type']!r}", name or str(index + 1))
        redundant = ("type", "caption_strategy", *KEYS_OF_TYPE.get(values["type"], ()))
        values = {key: value for key, value in values.items() if key not in redundant}
    section = Section(
        values=values,
        where=where,
        dataset=name or str(index + 1),
    )
    entry = check_section(section, schema, DATASET_TABLES, names, problems)
    if entry is not None and not entry.crop:
        for key in ("crop_style", "crop_aspect", "crop_aspect_buckets"):
            if key in entry.model_fields_set:
                problems.note(f"{who}{key}: no effect, crop is false")
    return entry
