"""Captions are changed after they are read: filters, shuffled tags, a prompt before those of the source."""

import json

import pytest
from config_runs import error_of, pair, plan, target_set

from difftrain.data.caption_edits import CaptionEdits, CaptionShuffle
from difftrain.errors import DataError


def edited(*captions, from_source=False, **edits):
    return CaptionEdits(**edits).apply(captions, from_source=from_source)


def test_nothing_asked_changes_nothing():
    assert edited("a,  b") == ("a,  b",)
    assert CaptionEdits(filters=("a",), shuffle=CaptionShuffle()).apply(None) is None
    assert edited("", shuffle=CaptionShuffle()) == ("",)


@pytest.mark.parametrize(
    ("filters", "caption", "expected"),
    [
        (("masterpiece,",), "masterpiece, a cat", "a cat"),
        (("s/cats?/dog/",), "two cats and a cat", "two dog and a dog"),
        ((r"s/(\w+) shot/a \1/",), "wide shot of a cat", "a wide of a cat"),
        (("(c) me",), "a cat (c) me", "a cat (c) me"),  # a group, as a regular expression
        (("(c",), "a cat (c", "a cat"),  # no expression: meant as it stands
        ((r"s/and\/or/or/",), "a and/or b", "a or b"),
        (("a", "b"), "abc", "c"),
    ],
)
def test_filters_take_out_and_replace(filters, caption, expected):
    assert edited(caption, filters=filters) == (expected,)


@pytest.mark.parametrize("name", ["filters.txt", "filters.json"])
def test_filters_may_stand_in_a_file(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps(["s/cat/dog/", "very"]) if name.endswith("json") else "s/cat/dog/\n\nvery\n")
    assert edited("a very old cat", filters=(str(path),)) == ("a old dog",)


@pytest.mark.parametrize(("name", "text"), [("none.txt", None), ("bad.json", "{}"), ("bad.txt", "s/(/x/")])
def test_a_file_of_filters_that_cannot_be_used_is_named(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"caption_filter_list: .*{name} cannot be used"):
        edited("a cat", filters=(str(tmp_path / name),))


def test_shuffled_captions_hold_the_same_tags_and_the_first_stay():
    found = edited("x, y, a, b, c, d, e", shuffle=CaptionShuffle(count=5, position_start=2))
    assert found[0] == "x, y, a, b, c, d, e"
    assert len(found) == 6
    for caption in found:
        assert caption.startswith("x, y, ")
        assert sorted(caption.split(", ")) == ["a", "b", "c", "d", "e", "x", "y"]


def test_shuffling_depends_on_text_and_seed_alone():
    first, again = (edited("a, b, c, d, e", shuffle=CaptionShuffle(count=3)) for _ in range(2))
    assert first == again
    assert edited("a, b, c, d, e", shuffle=CaptionShuffle(count=3, seed=1)) != first
    assert set(edited("z", "a, b, c, d, e", shuffle=CaptionShuffle(count=3))) == {"z", *first}


@pytest.mark.parametrize(
    ("split_on", "caption", "joint"),
    [("space", "a b c", " "), ("semicolon", "a; b;c", "; "), ("period", "a. b. c.", ". ")],
)
def test_tags_may_be_parted_by_other_signs(split_on, caption, joint):
    (found,) = edited(caption, shuffle=CaptionShuffle(split_on=split_on, include_original=False))
    assert sorted(found.split(joint)) == ["a", "b", "c"]


def test_a_single_tag_is_kept_without_the_original_too():
    assert edited("a cat", shuffle=CaptionShuffle(include_original=False)) == ("a cat",)


def test_the_prompt_stands_before_captions_of_the_source_only():
    assert edited("a cat", prompt="in ink", from_source=True) == ("in ink a cat",)
    assert edited("a cat", prompt="in ink") == ("a cat",)


# the config


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_entry_says_what_is_changed():
    asked = {"caption_shuffle": {"count": 3, "split_on": "space"}, "caption_filter_list": "very"}
    edits = plan(datasets=pair(**asked)).data.by_id("edits").caption_edits
    assert edits.filters == ("very",)
    assert (edits.shuffle.count, edits.shuffle.split_on) == (3, "space")
    for off in (None, False, {"enable": False}, {}):
        assert plan(datasets=pair(caption_shuffle=off)).data.by_id("edits").caption_edits.shuffle is None
    assert plan(datasets=pair(caption_shuffle=True)).data.by_id("edits").caption_edits.shuffle.count == 1


def test_filters_of_a_text_embeds_entry_are_for_the_sets_whose_text_it_holds():
    texts = [
        {"id": "text", "dataset_type": "text_embeds", "default": True, "caption_filter_list": ["x"]},
        {"id": "other", "dataset_type": "text_embeds"},
    ]
    sets = [target_set(), target_set(id="more", instance_data_dir="more", text_embeds="other")]
    data = plan(datasets=[*sets, *texts]).data
    assert data.by_id("edits").caption_edits.filters == ("x",)
    assert data.by_id("more").caption_edits.filters == ()


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"caption_shuffle": {"cuont": 3}}, "caption_shuffle: unknown key 'cuont'; did you mean 'count'?"),
        ({"caption_shuffle": {"count": 0}}, "caption_shuffle: count must be at least 1, got 0"),
        ({"caption_shuffle": {"split_on": "coma"}}, "split_on must be 'comma', 'space', 'semicolon' or 'period'"),
        ({"caption_shuffle": 3}, "caption_shuffle must be an object"),
        ({"caption_filter_list": ["s/(/x/"]}, "caption_filter_list: 's/(/x/' is no valid regular expression"),
        ({"caption_filter_list": ["s/x"]}, "caption_filter_list: 's/x' must be s/find/replacement/"),
    ],
)
def test_wrong_values_are_errors(fields, part):
    assert part in error_of(datasets=pair(**fields))
