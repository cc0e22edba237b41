"""The file of validation prompts: every mistake in it is reported with the other errors of the config."""

import json
from types import SimpleNamespace

import pytest

from difftrain.errors import ConfigError
from difftrain.planning.prompts import validation_prompts


def config(path, prompt=None):
    return SimpleNamespace(validation_prompt=prompt, validation_prompt_library=path)


def written(tmp_path, content):
    path = tmp_path / "library.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("{", "line 1"),
        ('{\n  "a": "b",\n}', "line 3"),
        ('["a"]', "must be one object like"),
        ('"a"', "must be one object like"),
        ("null", "must be one object like"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "b": "fine", "c": null}', "2 of 3 prompts are not texts: a, c"),
        ('{"a": {"b": "c"}}', "1 of 1 prompts are not texts: a"),
        ('{"a": "one", "b": "two", "a": "three"}', "1 names are used more than once: a"),
        ('{"a": "\\ud800"}', "1 of 1 prompts or names are not valid Unicode: 'a'"),
        ('{"\\udfff": 1}', r"1 of 1 prompts or names are not valid Unicode: '\udfff'"),
        ("{}", "has no prompts"),
        ('{"a": "é"}'.encode("latin-1"), "is not UTF-8"),
        ('{"a": "b"}'.encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_library_that_cannot_be_used_is_named_with_the_reason(tmp_path, content, said):
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        validation_prompts(config(path))
    assert str(caught.value).startswith(f"validation_prompt_library: {path}")
    assert said in str(caught.value)


def test_a_folder_or_a_missing_file_is_reported_as_such(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        validation_prompts(config(tmp_path))
    with pytest.raises(ConfigError, match="does not exist\nhint: relative paths start at"):
        validation_prompts(config(tmp_path / "none.json"))


def test_names_and_prompts_of_any_text_are_taken(tmp_path):
    library = {"before/after": "a", "": "b", "..": "c", "🎨": "", "x" * 300: "d"}
    path = written(tmp_path, "\ufeff" + json.dumps(library, ensure_ascii=False))
    assert validation_prompts(config(path)) == library


def test_the_single_prompt_is_kept_beside_one_of_its_name(tmp_path):
    path = written(tmp_path, '{"prompt": "of the library", "validation_prompt": "too"}')
    assert sorted(validation_prompts(config(path, "the single one")).values()) == [
        "of the library", "the single one", "too",
    ]  # fmt: skip
