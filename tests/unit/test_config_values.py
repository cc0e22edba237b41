"""Texts as values, placeholders, and the lines of keys in a file."""

from __future__ import annotations

import json
from pathlib import Path

import json5
import pytest
from config_runs import USERS_FILES
from hypothesis import given
from hypothesis import strategies as st

from difftrain.config.line_numbers import key_lines
from difftrain.config.user_values import coerce, fill_placeholders

PLAIN_KEYS = st.text(alphabet="abc_", min_size=1, max_size=4)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN_KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(st.integers())
def test_an_integer_as_text_is_the_integer(value):
    assert coerce(int, str(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_as_text_is_the_float(value):
    assert coerce(float, repr(value)) == value


@given(st.text())
def test_a_text_key_keeps_every_text(value):
    assert coerce(str, value) == value


@pytest.mark.parametrize("value", ["16.5", "1e3", "sixteen", "", "0x10", "1_000", "true"])
def test_a_text_that_is_not_exactly_an_integer_is_left_alone(value):
    assert coerce(int, value) is value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (bool, "True", True),
        (int | None, "null", None),
        (int | None, "None", None),
        (str | None, "none", "none"),
        (tuple[int, int], "[10, 50]", [10, 50]),
        (dict[str, float], '{"a": 1}', {"a": 1}),
        (Path, "true", "true"),
    ],
)
def test_a_text_is_read_as_its_key_asks(kind, text, value):
    assert coerce(kind, text) == value


def test_only_flags_write_lists_with_commas():
    assert coerce(tuple[float, ...], "0.5,1", lists_as_text=True) == [0.5, 1.0]
    assert coerce(tuple[float, ...], "0.5,1") == "0.5,1"


def test_placeholders_are_filled_however_deep():
    value = {"a": ["x/{id}", {"b": "{model_family}{id}"}], "c": 1}
    assert fill_placeholders(value, {"id": "i", "model_family": "m"}) == {"a": ["x/i", {"b": "mi"}], "c": 1}


@given(JSON_VALUES)
def test_every_key_of_any_json_is_found_on_its_line(value):
    text = json.dumps(value, indent=1)
    lines = text.split("\n")
    for path, line in key_lines(text).items():
        if isinstance(path[-1], str):
            assert lines[line - 1].strip().startswith(json.dumps(path[-1]) + ":")


@given(JSON_VALUES)
def test_no_key_of_any_json_is_missed(value):
    assert {path for path in key_lines(json.dumps(value)) if isinstance(path[-1], str)} == set(keys_of(value, ()))


def keys_of(value, path):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from keys_of(inner, (*path, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from keys_of(inner, (*path, index))


@pytest.mark.parametrize("name", ["config", "pairs", "validation_split", "generated_pairs"])
def test_no_key_of_a_commented_file_is_missed(name):
    text = (USERS_FILES / f"{name}.jsonc").read_text()
    found = {path for path in key_lines(text) if isinstance(path[-1], str)}
    assert found == set(keys_of(json5.loads(text), ()))
