"""Checks one flat set of keys, a run file or a dataset entry, against its schema and the tables of known keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from difftrain.config import known_keys
from difftrain.config.messages import explain, shown, unknown_key
from difftrain.config.options import Options
from difftrain.config.problems import Problems
from difftrain.config.values import coerce

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of :mod:`difftrain.config.known_keys` for one sort of section."""

    renamed: Mapping[str, str]
    switches: Mapping[str, tuple[str, str]]
    not_built: Mapping[str, tuple[object, ...]]
    no_effect: Mapping[str, str]

    def __contains__(self, key: str) -> bool:
        return any(key in table for table in (self.renamed, self.switches, self.not_built, self.no_effect))


RUN_TABLES = Tables(
    renamed=known_keys.RENAMED_RUN,
    switches=known_keys.SWITCHES_RUN,
    not_built=known_keys.NOT_BUILT_RUN,
    no_effect=known_keys.NO_EFFECT_RUN,
)
DATASET_TABLES = Tables(
    renamed={},
    switches=known_keys.SWITCHES_DATASET,
    not_built=known_keys.NOT_BUILT_DATASET,
    no_effect=known_keys.NO_EFFECT_DATASET,
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Keys and values as the user wrote them, and how messages name their places."""

    values: dict[str, Any]
    where: Callable[[str], str]
    """What stands before a message about a key, such as ``config/config.json:12: ``; the key ``""`` is the whole."""
    dataset: str | None = None
    """Id of the entry; None for the run file."""
    text_lists: Collection[str] = ()
    """Keys that came as flags: a list may be written ``a,b``."""


def plain_key(key: str) -> str:
    """``--lora-rank`` and ``lora-rank`` are ``lora_rank``."""
    return key.strip().removeprefix("--").replace("-", "_")


def check_section(
    section: Section,
    schema: type[OptionsT],
    tables: Tables,
    names: Mapping[str, Collection[str]],
    problems: Problems,
) -> OptionsT | None:
    """The validated options; every problem is kept.

    Args:
        names: Registered names by key; they win over the table of values that are not built yet.

    Returns:
        None when even the keys that are right do not make a config, for instance as one is missing.
    """
    values = _known_only(section, schema, tables, problems)
    values = _built_only(section, values, names, problems)
    for key, value in values.items():
        annotation = schema.model_fields[key].annotation
        values[key] = coerce(annotation, value, lists_as_text=key in section.text_lists)
    try:
        return _validate(schema, values)
    except ValidationError as error:
        wrong = explain(error, values)
        for key, sentence in wrong.items():
            problems.add(section.where(key) + sentence)
    try:
        return _validate(schema, {key: value for key, value in values.items() if key not in wrong})
    except ValidationError:
        return None


def parse_options(
    kind: type[OptionsT], values: Mapping[str, Any], *, prefix: str, problems: Problems
) -> OptionsT | None:
    """Options of one class from values that stand in a block of their own; None after a problem."""
    unknown = [key for key in values if key not in kind.model_fields]
    for key in unknown:
        problems.add(prefix + unknown_key(key, kind.model_fields))
    coerced = {
        key: coerce(kind.model_fields[key].annotation, value) for key, value in values.items() if key not in unknown
    }
    try:
        options = _validate(kind, coerced)
    except ValidationError as error:
        for sentence in explain(error, coerced).values():
            problems.add(prefix + sentence)
        return None
    return None if unknown else options


def _validate(schema: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Strict, and by way of JSON, where a list may be a tuple and a text a path but true is not a number."""
    return schema.model_validate_json(json.dumps(values), strict=True)


def _known_only(section: Section, schema: type[Options], tables: Tables, problems: Problems) -> dict[str, Any]:
    """The keys that the schema has; the others are looked up in the tables."""
    values: dict[str, Any] = {}
    for raw, value in section.values.items():
        key = tables.renamed.get(raw, raw)
        if key not in schema.model_fields and key in tables.switches:
            key, value = _switched(section, key, value, tables, problems)
            if value is None:
                continue
        if key in schema.model_fields:
            if key in values and values[key] != value:
                problems.add(f"{section.where(raw)}{key} is given twice, as {shown(values[key])} and {shown(value)}")
            values[key] = value
        elif key in tables.not_built:
            if not _is_neutral(value, tables.not_built[key]):
                problems.not_built(f"{key} = {value if isinstance(value, str) else shown(value)}", section.dataset)
        elif key in tables.no_effect:
            problems.note(f"{key}: no effect, {tables.no_effect[key]}")
        else:
            problems.add(section.where(raw) + unknown_key(raw, [*schema.model_fields, *tables.renamed]))
    return values


def _switched(section: Section, key: str, value: object, tables: Tables, problems: Problems) -> tuple[str, str | None]:
    """The key and value that a switch stands for; no value when it is off."""
    other, meant = tables.switches[key]
    on = coerce(bool, value)
    if not isinstance(on, bool):
        problems.add(f"{section.where(key)}{key} must be true or false, got {shown(value)}")
    return (other, meant) if on is True else (other, None)


def _built_only(
    section: Section, values: dict[str, Any], names: Mapping[str, Collection[str]], problems: Problems
) -> dict[str, Any]:
    """Without the values that name something not built yet."""
    kept = {}
    for key, value in values.items():
        unbuilt = known_keys.NOT_BUILT_VALUES.get(key, ())
        if isinstance(value, str) and value in unbuilt and value not in names.get(key, ()):
            problems.not_built(f"{key} {value!r}", section.dataset)
        else:
            kept[key] = value
    return kept


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    if isinstance(value, str):
        value = next((item for item in (*neutral, True) if value.strip().lower() == str(item).lower()), value)
    return any(
        value == item and isinstance(value, bool) == isinstance(item, bool) for item in (*neutral, None, "", "none")
    )
