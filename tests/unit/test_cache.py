"""The tensor cache: complete or absent, checked when read."""

from pathlib import Path

import pytest
import torch

from difftrain.data.caching.tensor_cache import CorruptEntry, TensorCache, cache_key
from difftrain.errors import DataError, MachineError
from difftrain.machine.folders import check_writable

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
    with pytest.raises(CorruptEntry, match="is damaged"):
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


@pytest.fixture
def below_a_file(tmp_path):
    (tmp_path / "file").write_text("a file")
    return TensorCache(tmp_path / "file")


def test_folder_that_is_a_file_is_a_message_when_asked_and_when_written(below_a_file):
    with pytest.raises(DataError, match=f"{below_a_file.folder}.* cannot be read"):
        below_a_file.holds(KEY)
    with pytest.raises(DataError, match=f"{below_a_file.folder}.* cannot be written"):
        below_a_file.write(KEY, {"mean": torch.zeros(1)})


def test_failed_write_leaves_no_temporary_file(cache):
    path = cache.path(KEY)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        cache.write(KEY, {"mean": torch.zeros(1)})
    assert list(path.parent.iterdir()) == [path]


def test_folder_that_can_be_made_is_not_made_by_the_check(tmp_path):
    check_writable(tmp_path / "a" / "b", "cache_dir_vae")
    assert list(tmp_path.iterdir()) == []


def test_folder_below_a_file_is_refused_by_the_check(tmp_path):
    (tmp_path / "file").write_text("a file")
    message = f"cache_dir_vae {tmp_path}/file/a: {tmp_path}/file is a file, not a folder"
    with pytest.raises(MachineError, match=f"^{message}$"):
        check_writable(tmp_path / "file" / "a", "cache_dir_vae")


def test_dangling_link_is_refused_by_the_check(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(MachineError, match="is a broken link"):
        check_writable(tmp_path / "link", "cache_dir_vae")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_folder_on_a_file_system_that_not_even_root_can_write_is_refused_by_the_check():
    with pytest.raises(MachineError, match="cache_dir_vae /proc/cache: /proc cannot be written"):
        check_writable(Path("/proc/cache"), "cache_dir_vae")
