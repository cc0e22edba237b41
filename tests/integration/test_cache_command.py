"""`difftrain cache` encodes what a run will read, checks it, and removes the rest."""

import os
import time

import pytest

from conftest import EditPairs, run_in


@pytest.fixture
def cache(tmp_path):
    """Return a function that runs `difftrain cache` on four pairs, and the folder of the caches."""
    pairs = EditPairs(tmp_path)
    listed = pairs(count=4)
    always = (*pairs.kontext, "--data_backend_config", listed.name, "--max_train_steps", "2", "--vae_batch_size", "1")

    def run(*flags, command="cache"):
        words = () if command is None else (command,)
        ended = run_in(tmp_path, *words, *always, *flags)
        assert ended.status == 0, ended.err
        return ended.err

    run.folder = tmp_path / "cache"
    run.pairs, run.listed = pairs, listed.name
    return run


def entries(cache):
    return sorted(path for path in cache.folder.rglob("??/*.safetensors"))


def test_a_run_after_it_encodes_nothing_and_starts_no_encoder(cache):
    said = cache()
    assert "encode images 8:" in said
    assert "encode captions 5:" in said
    assert "caches: complete, " in said
    assert len(entries(cache)) == 13
    assert "caches: complete, nothing to encode" in cache(command=None)
    assert cache().count("encode") == 1  # "nothing to encode"


def test_images_on_demand_are_encoded_too_but_not_those_that_are_not_stored(cache):
    assert "encode images 8:" in cache("--vae_cache_ondemand")
    assert "encode images" not in cache("--vae_cache_disable", "--cache_dir", "other")


def test_verify_finds_damage_that_leaves_the_size_and_makes_the_entry_again(cache):
    cache()
    damaged = entries(cache)[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-4] + b"\x00\x00\xc0\x7f")  # NaN, in the right place for every number format here
    assert "nothing to encode" in cache()
    said = cache("--verify")
    assert "1 of 13 cache entries were damaged and removed" in said
    assert damaged.read_bytes() == whole
    assert "0 of 13 cache entries" in cache("--verify")


def test_prune_removes_what_the_run_does_not_need_and_nothing_else(cache):
    cache()
    before = entries(cache)
    next((cache.pairs.folder / "edits").glob("*.txt")).write_text("another instruction")
    cache()
    old = set(before) & set(entries(cache))
    half = before[0].with_name(f".{before[0].name}.123.456")
    fresh = before[1].with_name(f".{before[1].name}.123.456")
    stranger = before[0].with_name("notes.txt")
    weights = stranger.with_name(f"{stranger.parent.name}-lora.safetensors")  # named as its folder, as entries are
    for path in (half, fresh, stranger, weights):
        path.write_bytes(b"1234")
    os.utime(half, (time.time() - 2 * 24 * 3600,) * 2)
    said = cache("--prune")
    assert "2 files that this run does not need were removed" in said
    assert len(old - set(entries(cache))) == 1  # the old caption
    assert not half.exists()
    assert fresh.exists()
    assert stranger.exists()
    assert weights.exists()
    assert "0 files that this run does not need" in cache("--prune")
    assert "nothing to encode" in cache(command=None)


def test_it_says_what_is_odd_and_prints_no_json(cache):
    assert "note: write_batch_size" in cache("--write_batch_size", "64")
    ended = run_in(cache.pairs.folder, "cache", "--json")
    assert ended.status == 2
    assert ended.err.startswith("error: --json works only with ")


@pytest.mark.parametrize("flag", ["--verify", "--prune"])
@pytest.mark.parametrize("command", [(), ("check",)])
def test_its_flags_belong_to_it(tmp_path, flag, command):
    ended = run_in(tmp_path, *command, flag)
    assert ended.status == 2
    assert f"{flag} works only with `difftrain cache`" in ended.err


def test_problems_of_the_data_are_found_before_anything_is_encoded(cache):
    next((cache.pairs.folder / "references").iterdir()).unlink()
    arguments = (*cache.pairs.kontext, "--data_backend_config", cache.listed, "--max_train_steps", "2")
    ended = run_in(cache.pairs.folder, "cache", *arguments)
    assert ended.status == 2
    assert "start torch" not in ended.err
