"""The tensor cache: complete or absent, checked when read."""

import pytest
import torch

from difftrain.data.cache import CorruptEntry, TensorCache, cache_key
from difftrain.errors import DataError

KEY = cache_key("a", "b")


@pytest.fixture
def cache(tmp_path):
    cache = TensorCache(tmp_path)
    cache.write(KEY, {"mean": torch.arange(6.0)})
    return cache


def test_entry_comes_back_as_it_was(cache):
    assert torch.equal(cache.read(KEY)["mean"], torch.arange(6.0))


def test_key_tells_its_parts_apart():
    assert cache_key("ab", "c") != cache_key("a", "bc")


@pytest.mark.parametrize("left", [0, 4, 30, -1])
def test_entry_cut_short_is_noticed_and_removed(cache, left):
    path = cache.path(KEY)
    path.write_bytes(path.read_bytes()[:left])
    assert not cache.holds(KEY)
    assert not path.exists()
    assert cache.removed == [KEY]


def test_garbage_is_noticed_when_read(cache):
    path = cache.path(KEY)
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CorruptEntry, match="cannot be read"):
        cache.read(KEY)
    assert not path.exists()


def test_nan_in_an_entry_is_noticed_when_read(cache):
    path = cache.path(KEY)
    data = bytearray(path.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # a float32 NaN
    path.write_bytes(data)
    with pytest.raises(CorruptEntry, match="not finite"):
        cache.read(KEY)


def test_nan_is_never_written(cache):
    with pytest.raises(DataError, match="not finite"):
        cache.write(cache_key("other"), {"mean": torch.tensor([float("nan")])})
    assert not cache.holds(cache_key("other"))


def test_no_temporary_file_is_left(cache):
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == [f"{KEY}.safetensors"]


def test_tensors_start_at_addresses_that_vector_kernels_can_load(cache):
    # A bfloat16 tensor in the middle of a file's buffer made torch's int8 CPU kernel crash (segmentation fault).
    cache.write(cache_key("odd"), {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.ones(64, dtype=torch.bfloat16)})
    assert all(tensor.data_ptr() % 16 == 0 for tensor in cache.read(cache_key("odd")).values())
