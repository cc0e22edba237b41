import os

import pytest
import torch
from data_plans import SilentReporter

from difftrain import DataError
from difftrain.data.caching import cache_listing
from difftrain.data.caching.cache_listing import absent_keys
from difftrain.data.caching.tensor_cache import TensorCache, cache_key

KEYS = [f"ab{number:038x}" for number in range(20)]


@pytest.fixture
def cache(tmp_path):
    found = TensorCache(tmp_path / "cache")
    for key in KEYS[:15]:
        found.write(key, {"mean": torch.ones(4)})
    return found


def test_keys_without_an_entry_are_absent(cache):
    assert absent_keys(cache, KEYS) == set(KEYS[15:])


def test_an_empty_cache_has_nothing(tmp_path):
    assert absent_keys(TensorCache(tmp_path / "none"), KEYS) == set(KEYS)


def test_few_files_are_opened(cache, monkeypatch):
    opened = []
    holds = TensorCache.holds
    monkeypatch.setattr(
        TensorCache, "holds", lambda self, key, **names: opened.append(key) or holds(self, key, **names)
    )
    absent_keys(cache, KEYS)
    assert len(opened) == 1  # all entries have one size


@pytest.mark.parametrize("left", [0, 7, 40])
def test_an_entry_cut_short_is_absent_and_removed(cache, left):
    os.truncate(cache.path(KEYS[3]), left)
    assert absent_keys(cache, KEYS) == {KEYS[3], *KEYS[15:]}
    assert not cache.path(KEYS[3]).exists()
    assert cache.removed == [KEYS[3]]


def test_entries_of_another_size_are_judged_apart(cache):
    cache.write(KEYS[16], {"mean": torch.ones(8)})
    assert absent_keys(cache, KEYS) == {KEYS[15], *KEYS[17:]}


def test_a_folder_in_the_place_of_an_entry_is_an_error(cache):
    cache.path(KEYS[17]).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        absent_keys(cache, KEYS)


def test_a_link_to_an_entry_is_an_entry_and_a_broken_link_is_none(cache, tmp_path):
    cache.path(KEYS[17]).symlink_to(cache.path(KEYS[0]))
    cache.path(KEYS[18]).symlink_to(tmp_path / "gone")
    assert absent_keys(cache, KEYS) == {KEYS[15], KEYS[16], KEYS[18], KEYS[19]}


def test_few_keys_are_looked_at_without_listing_what_others_wrote(cache, monkeypatch):
    monkeypatch.setattr(cache_listing.os, "scandir", None)
    assert absent_keys(cache, KEYS[12:18]) == set(KEYS[15:18])


def test_a_folder_that_cannot_be_listed_is_looked_at_file_by_file(cache, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "permission denied")

    monkeypatch.setattr(cache_listing.os, "scandir", refuse)
    assert absent_keys(cache, KEYS) == set(KEYS[15:])


def test_every_key_is_counted(cache):
    reporter = SilentReporter()
    with reporter.phase("check caches") as phase:
        absent_keys(cache, KEYS, phase)
    assert reporter.phases["check caches"] == len(KEYS)


def test_keys_are_those_of_earlier_versions():
    assert cache_key("content", "é", "") == "154722210de1a04bd7abe73f6e730dda473a67c1"
