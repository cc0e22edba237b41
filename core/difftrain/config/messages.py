"""Turns pydantic's errors into this project's messages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

_MUST_BE: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": 'an object {{"name": value}}',
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "string_too_short": "a text of at least {min_length} character",
}


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that a mistyped or shortened name probably means."""
    listed = sorted(choices)
    matches = difflib.get_close_matches(name, listed, n=1, cutoff=0.6)
    matches += [choice for choice in listed if len(name) > 3 and name in choice]
    return matches[0] if matches else None


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for a key that nothing here knows."""
    guess = nearest(key, known)
    return f"unknown key {key!r}" + (f"; did you mean {guess!r}?" if guess else "")


def shown(value: object) -> str:
    """Return a value as the user would write it, cut to one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def explain(error: ValidationError, values: Mapping[str, Any]) -> dict[str, str]:
    """Return one sentence per wrong key, such as ``lora_rank must be a whole number, got true``.

    Args:
        values: The validated values, for the "got" part.

    Returns:
        By key; the key ``""`` is a problem of several keys together.
    """
    sentences: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_input=False):
        key = str(item["loc"][0]) if item["loc"] else ""
        sentences.setdefault(key, []).append(_demand(item))
    explained = {}
    for key, demands in sentences.items():
        wanted = " or ".join(dict.fromkeys(demands))
        got = f", got {shown(values[key])}" if key in values and wanted != "is missing" else ""
        explained[key] = f"{key} {wanted}{got}".strip()
    return explained


def _demand(item: Any) -> str:
    error_type, context = item["type"], item.get("ctx", {})
    if error_type == "missing":
        return "is missing"
    if error_type == "extra_forbidden":
        return "is an unknown key"
    if error_type == "value_error":
        return str(context["error"])
    if error_type in _MUST_BE:
        return "must be " + _MUST_BE[error_type].format(**context)
    return str(item["msg"]).replace("Input should be", "must be").lower()
