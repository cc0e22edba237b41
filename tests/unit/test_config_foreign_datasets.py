"""Keys of other trainers' dataset lists: named caches, ids that name nothing, entries that are off."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_runs import error_of, pair, plan, target_set

TEXT = {"id": "text", "dataset_type": "text_embeds", "default": True}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("value", ["json", "discovery", "huggingface", "parquet", None])
def test_the_metadata_backends_that_scan_files_are_neutral(value):
    assert plan(datasets=pair(metadata_backend=value)).notes == ()


def test_another_metadata_backend_is_not_built():
    message = error_of(datasets=pair(metadata_backend="webshart"))
    assert message == "not supported yet in difftrain 0.1: metadata_backend = webshart (dataset edits)"


def test_the_text_cache_that_is_used_may_be_named():
    assert plan(datasets=[*pair(text_embeds="text"), TEXT]).notes == ()


def test_a_text_cache_that_is_not_there_is_an_error_with_the_nearest():
    message = error_of(datasets=[*pair(text_embeds="texts"), TEXT])
    assert (
        message
        == "dataset 'edits': text_embeds names 'texts', which is not a text_embeds dataset; did you mean 'text'?"
    )
    assert error_of(datasets=pair(text_embeds="text")).endswith(
        "text_embeds names 'text', which is not a text_embeds dataset; known: none"
    )


def test_a_set_chooses_its_text_cache_by_id():
    datasets = [*pair(text_embeds="other"), TEXT, {"id": "other", "dataset_type": "text_embeds"}]
    data = plan(datasets=datasets).data
    assert data.by_id("edits").text_folder == Path("cache/text-other")
    assert data.text_folder == Path("cache/text")
    assert data.text_folders == (Path("cache/text"), Path("cache/text-other"))


def test_a_text_cache_that_is_not_used_is_reported():
    datasets = [*pair(), TEXT, {"id": "other", "dataset_type": "text_embeds"}]
    notes = plan(datasets=datasets).notes
    assert "dataset 'other': not used, no set names it in text_embeds, and it is not the default" in notes


def test_two_text_caches_in_one_folder_are_an_error():
    other = {"id": "other", "dataset_type": "text_embeds", "cache_dir": "texts"}
    message = error_of(datasets=[*pair(text_embeds="other"), {**TEXT, "cache_dir": "texts"}, other])
    assert "the text embeddings and the text embeddings of 'other' share one cache folder " in message


@pytest.mark.parametrize("value", [None, "", "none"])
def test_a_dataset_id_that_is_not_given_is_none(value):
    data = plan(datasets=[target_set(text_embeds=value, conditioning_data=value, source_dataset_id=value)]).data
    assert data.target_sets[0].references == ()


@pytest.mark.parametrize("key", ["disable", "disabled", "--disable"])
def test_a_dataset_is_turned_off_under_both_names(key):
    assert [one.id for one in plan(datasets=[target_set(), {"id": "x", key: True, "nonsense": 1}]).data.datasets] == [
        "edits"
    ]


def test_captions_may_be_turned_off_as_a_text():
    datasets = pair()
    datasets[1]["caption_strategy"] = "none"
    assert plan(datasets=datasets).data.by_id("refs").captions is None


def test_a_cloud_store_says_that_a_plugin_is_needed_and_what_to_do_without():
    entry = target_set(type="aws", instance_data_dir=..., aws_bucket_name="photos", aws_region_name="eu")
    message = error_of(datasets=[entry])
    assert "type 'aws': cloud stores come with a plugin that has a data source named 'aws'" in message
    assert "hint: install one, or mount or copy the bucket and set type = local" in message
    assert "not supported yet" not in message
