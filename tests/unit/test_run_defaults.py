"""Values of the run for datasets that do not set them; a dataset's own value wins."""

from __future__ import annotations

import pytest
from config_runs import error_of, pair, plan, run_values, target_set


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def set_of(run, **entry):
    return plan(run_values(**run), datasets=[target_set(**entry)]).data.by_id("edits")


@pytest.mark.parametrize(
    ("key", "of_the_run", "own"),
    [
        ("max_upscale_threshold", 0.5, 0),
        ("maximum_image_size", 2048, 3000),
        ("target_downsample_size", 1500, 1200),
        ("minimum_image_size", 512, 256),
    ],
)
def test_sizes(key, of_the_run, own):
    both = {"maximum_image_size": 4000, "target_downsample_size": 1100, key: of_the_run}
    found = set_of(both)
    assert getattr(found.config, key) == of_the_run
    assert getattr(set_of(both, **{key: own}).config, key) == own
    if key in ("maximum_image_size", "target_downsample_size"):
        assert getattr(found.rules, key) == of_the_run


def test_sizes_in_another_unit_are_not_used_and_noted():
    planned = plan(
        run_values(maximum_image_size=2048, target_downsample_size=1024),
        datasets=[target_set(resolution=1, resolution_type="area")],
    )
    assert planned.data.by_id("edits").config.maximum_image_size is None
    assert (
        "dataset 'edits': maximum_image_size 2048 of the run is not used here: it is meant with resolution_type "
        in ("\n".join(planned.notes))
    )


def test_shuffled_captions():
    assert set_of({"caption_shuffle": {"count": 3}}).caption_edits.shuffle.count == 3
    assert set_of({"caption_shuffle": {"count": 3}}, caption_shuffle=None).caption_edits.shuffle.count == 3
    assert set_of({"caption_shuffle": {"count": 3}}, caption_shuffle={"count": 2}).caption_edits.shuffle.count == 2
    for off in (False, {"enable": False}):
        assert set_of({"caption_shuffle": True}, caption_shuffle=off).caption_edits.shuffle is None
    message = error_of(
        run_values(caption_shuffle={"cuont": 3}), [target_set(), target_set(id="b", instance_data_dir="b")]
    )
    assert message == "caption_shuffle: unknown key 'cuont'; did you mean 'count'?"


def test_prompts():
    prompted = {"instance_prompt": "a sks", "prepend_instance_prompt": True}
    assert set_of(prompted).captions._prompted("cat") == "a sks cat"
    assert set_of(prompted).caption_edits.prompt == "a sks"
    assert set_of(prompted, instance_prompt="my").captions._prompted("cat") == "my cat"
    assert set_of(prompted, prepend_instance_prompt=False).captions._prompted("cat") == "cat"
    assert "prepend_instance_prompt = true needs an instance_prompt" in error_of(
        run_values(prepend_instance_prompt=True)
    )


def test_only_the_prompt_for_sets_that_set_no_strategy():
    only = {"instance_prompt": "a sks", "only_instance_prompt": True}
    found = set_of(only, caption_strategy=...)
    assert found.captions.captions(None) == ("a sks",)
    assert not found.takes_source_captions
    assert set_of(only, caption_strategy=..., instance_prompt="my").captions.captions(None) == ("my",)
    kept = plan(run_values(**only), datasets=[target_set(caption_strategy="textfile")])
    assert kept.data.by_id("edits").captions.name == "textfile"
    assert any(
        "keeps its own caption_strategy textfile; only_instance_prompt of the run" in note for note in kept.notes
    )


def test_references_have_captions_only_if_they_say_so():
    data = plan(run_values(instance_prompt="a sks", only_instance_prompt=True), datasets=pair()).data
    assert data.by_id("refs").captions is None


def test_columns_of_the_block_parquet():
    run = {"parquet_caption_column": "long", "parquet_filename_column": "file"}
    block = {"path": "t.jsonl", "caption_column": "short"}
    settings = set_of(run, caption_strategy="parquet", parquet=block).captions._settings
    assert (settings.caption_column, settings.filename_column, settings.path) == (("short",), "file", "t.jsonl")
    assert set_of(run, caption_strategy="parquet").captions._settings.caption_column == ("long",)
