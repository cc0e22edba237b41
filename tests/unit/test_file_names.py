"""Names of prompts, samples and datasets as file names: valid on every disk, and unique per image."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_epoch import sample

from difftrain.validation.drawn_files import LONGEST_NAME, disk_key, safe_file_name
from difftrain.validation.scenes import choose_scenes

ANY_TEXT = st.text(st.characters(codec=None), max_size=300)
REFUSED_BY_WINDOWS = set('<>:"/\\|?*') | {chr(code) for code in range(32)}


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("edits-0001", "edits-0001"),
        ("IMG_0001 (copy)", "IMG_0001 (copy)"),
        ("before/after", "before-after"),
        ("../../etc/passwd", "etc-passwd"),
        ("a:b", "a-b"),
        ("C:\\images\\x", "C--images-x"),
        ("..", "unnamed"),
        ("-rf", "rf"),
        ("a--b-", "a--b-"),
        ("", "unnamed"),
        (" / ", "unnamed"),
        (".hidden", "hidden"),
        ("trailing space ", "trailing space"),
        ("what?", "what-"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("com1", "_com1"),
        ("console", "console"),
        ("line\nbreak\ttab", "line-break-tab"),
        ("not UTF-8 \udcff", "not UTF-8 -"),
        ("turned \u202eround", "turned -round"),
        ("🎨 paint", "🎨 paint"),
        ("cafe\u0301", "café"),
    ],
)
def test_a_name_keeps_what_every_disk_takes(name, becomes):
    assert safe_file_name(name) == becomes


@given(ANY_TEXT)
@example("a" * 300)
@example("a" * 111 + ". ." * 50)
@example("\U0001f3a8" * 100)
@example("aux." + "é" * 200)
def test_every_text_becomes_one_portable_path_component(text):
    name = safe_file_name(text)
    encoded = name.encode("utf-8")
    assert 0 < len(encoded) <= LONGEST_NAME
    assert not REFUSED_BY_WINDOWS & set(name)
    assert name == name.strip(" .")
    assert name.split(".")[0].rstrip().upper() not in ("CON", "PRN", "AUX", "NUL", "COM1", "LPT9", "CONIN$", "CONOUT$")


@given(ANY_TEXT)
def test_a_safe_name_is_its_own_safe_name(text):
    assert safe_file_name(safe_file_name(text)) == safe_file_name(text)


def test_long_names_with_one_beginning_stay_apart():
    names = [safe_file_name("make it " * 40 + end) for end in ("red", "blue")]
    assert names[0] != names[1]


def drawn(prompts, samples=(), seeds=1):
    config = SimpleNamespace(num_eval_images=9, validation_size=(64, 64), validation_num_seeds=seeds)
    return [scene.name for scene in choose_scenes(samples, config, prompts, 16)]


@given(st.lists(ANY_TEXT, unique=True, max_size=8))
@example(["Before", "before", "before-2", "BEFORE"])
@example(["a/b", "a-b", "a:b", "a-b-2"])
@example(["cafe\u0301", "café", "CAFÉ"])
@example(["straße", "STRASSE", "sheet", "Sheet"])
def test_no_two_prompts_share_a_file_on_a_disk_that_ignores_case(names):
    files = [disk_key(name) for name in drawn(dict.fromkeys(names, "a prompt"))]
    assert len({*files, "sheet"}) == len(names) + 1


def test_a_prompt_that_is_called_like_another_ones_second_seed_has_its_own_file():
    assert drawn({"cat": "", "Cat-Seed-2": ""}, seeds=2) == ["cat", "Cat-Seed-2-2"]


def test_keys_of_samples_and_ids_of_datasets_are_made_safe_too():
    assert drawn({}, [sample("sub/what?", dataset="my:edits")]) == ["my-edits-sub-what-"]
