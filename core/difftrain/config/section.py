"""Checks one flat set of keys, a run file or a dataset entry, against its schema and the tables of known keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from difftrain.config.known_keys import INSTEAD, NOT_BUILT_VALUES, OTHER_NAMES, KnownKeys, is_unset, means_no_name
from difftrain.config.messages import explain, unknown_key
from difftrain.config.options import Options
from difftrain.config.paths import expand, holds_path, is_optional
from difftrain.config.problems import Problems
from difftrain.config.sorter import KeySorter
from difftrain.config.user_values import coerce, fill_placeholders, wrong_numbers, wrong_texts

OptionsT = TypeVar("OptionsT", bound=Options)
Known = Mapping[str, str | None]
"""Values of placeholders; None for one that is not set."""
PARSED_LATER = frozenset({"optimizer_config", "conditioning"})
"""Keys whose values are options of a class not known yet; :func:`parse_options` fills their placeholders."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Keys and values as the user wrote them, with the prefixes of messages about them."""

    values: dict[str, Any]
    where: Callable[[str], str]
    """Prefix of a message about a key, such as ``config/config.json:12: ``; the key ``""`` is the whole section."""
    dataset: str | None = None
    """Id of the entry; None for the run file."""
    text_lists: Collection[str] = ()
    """Keys given as flags, where a list may be written ``a,b``."""
    placeholders: Known = field(default_factory=dict)


def check_section(
    section: Section,
    schema: type[OptionsT],
    tables: KnownKeys,
    names: Mapping[str, Collection[str]],
    problems: Problems,
) -> OptionsT | None:
    """Return the validated options; every problem is collected.

    Args:
        names: Registered names by key; they win over the table of values that are not supported yet.

    Returns:
        None if not even the valid keys make a config, for example because one is missing.
    """
    sorter = KeySorter(schema=schema, tables=tables, where=section.where, dataset=section.dataset)
    values = sorter.take(section.values, problems)
    sorter.tell(problems)
    values = _built_only(section, schema, values, names, problems)
    readable: dict[str, Any] = {}
    for key, value in values.items():
        kept = _read(section, key, schema.model_fields[key], value, problems)
        if kept is not _WRONG:
            readable[key] = kept
    options = _validated(section, schema, readable, problems)
    if options is not None and section.dataset is None:
        problems.wrong_keys |= {
            key for key in values if key not in options.model_fields_set and not is_unset(values[key])
        }
    return options


_WRONG = object()
"""Marks a value that had a problem."""


def _read(section: Section, key: str, option: FieldInfo, value: object, problems: Problems) -> object:
    """Return a value with its placeholders filled in and of the key's type, or :data:`_WRONG`."""
    before = len(problems)
    for sentence in wrong_texts(key, value):
        problems.add(section.where(key) + sentence)
    # a key must not appear in its own value
    known = {name: meaning for name, meaning in section.placeholders.items() if name != key}
    as_path = holds_path(key, option.annotation)
    if as_path and means_no_name(value) and (_is_empty(option) or key == "resume_from_checkpoint"):
        return None
    if as_path:
        value = coerce(option.annotation, value, lists_as_text=key in section.text_lists)
        with problems.catching(f"{section.where(key)}{key}: "):
            value = expand(value, known)
    elif key not in PARSED_LATER:
        with problems.catching(f"{section.where(key)}{key}: "):
            value = fill_placeholders(value, known)
    value = coerce(option.annotation, value, lists_as_text=key in section.text_lists)
    for sentence in wrong_numbers(key, value):
        problems.add(section.where(key) + sentence)
    return value if len(problems) == before else _WRONG


def _validated(section: Section, schema: type[OptionsT], values: dict[str, Any], problems: Problems) -> OptionsT | None:
    """Return the options without the wrong keys, which are reported."""
    try:
        return _validate(schema, values)
    except ValidationError as error:
        wrong = explain(error, values)
    # null, and false where the default is empty, leave a key at its default unless they are valid values of it
    unset = {key for key in wrong if key in values and _leaves_default(schema.model_fields[key], values[key])}
    values = {key: value for key, value in values.items() if key not in unset}
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


def _leaves_default(option: FieldInfo, value: object) -> bool:
    return is_unset(value) or (means_no_name(value) and _is_empty(option))


def _is_empty(option: FieldInfo) -> bool:
    """Return whether a key is empty by default."""
    return not option.is_required() and option.get_default(call_default_factory=True) in (None, (), {})


def parse_options(
    cls: type[OptionsT], values: Mapping[str, Any], *, prefix: str, problems: Problems, known: Known | None = None
) -> OptionsT | None:
    """Return options of one class from the values of a nested block; None after a problem.

    Args:
        known: Values of placeholders; None leaves texts and paths unchanged.
    """
    before = len(problems)
    for key in values:
        if key not in cls.model_fields:
            problems.add(prefix + unknown_key(key, cls.model_fields))
    section = Section(
        values={key: value for key, value in values.items() if key in cls.model_fields},
        where=lambda _: prefix,
        placeholders=known or {},
    )
    readable = {
        key: _read(section, key, cls.model_fields[key], value, problems) for key, value in section.values.items()
    }
    options = _validated(section, cls, {key: value for key, value in readable.items() if value is not _WRONG}, problems)
    return options if len(problems) == before else None


def _validate(schema: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Validate strictly, as JSON: a list may be a tuple and a text a path, but true is not a number."""
    return schema.model_validate_json(json.dumps(values), strict=True)


def _built_only(
    section: Section,
    schema: type[Options],
    values: dict[str, Any],
    names: Mapping[str, Collection[str]],
    problems: Problems,
) -> dict[str, Any]:
    """Return values under our names, without those that are not supported yet."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        registered = names.get(key, ())
        if key in names and is_unset(value) and value not in registered:
            # no name at all: the default, or none if the key may be null
            if is_optional(schema.model_fields[key].annotation):
                kept[key] = None
            continue
        text = str(value).lower() if isinstance(value, bool) else value
        is_name = isinstance(text, str) and text not in registered
        if is_name and text in INSTEAD.get(key, {}):
            problems.add(f"{section.where(key)}{key} {text!r}: {INSTEAD[key][text]}")
        elif is_name and text in NOT_BUILT_VALUES.get(key, ()):
            problems.not_built(f"{key} {text!r}", section.dataset)
        else:
            kept[key] = _own_name(key, value, registered) if isinstance(value, str) else value
    return kept


def _own_name(key: str, value: str, registered: Collection[str]) -> str:
    """Return our name for a value that others spell or call differently; unknown values unchanged."""
    if value in registered:
        return value
    value = OTHER_NAMES.get(key, {}).get(value, value)
    alike = [name for name in registered if _spelling(name) == _spelling(value)]
    return alike[0] if len(alike) == 1 else value


def _spelling(name: str) -> str:
    return name.strip().lower().replace("-", "_")
