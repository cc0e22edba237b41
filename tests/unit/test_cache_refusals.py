"""A failure of the system proves nothing about a cache entry: it is kept, and the message names it."""

import errno
import json
import os
import struct
from pathlib import Path

import pytest
import torch

from difftrain.data.caching.tensor_cache import AbsentEntry, CorruptEntry, TensorCache, cache_key, write_atomically
from difftrain.errors import DataError
from difftrain.machine import retries

KEY = cache_key("a", "b")
REFUSALS = [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ESTALE, errno.EPERM, errno.ENOMEM]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0))


@pytest.fixture
def cache(tmp_path):
    cache = TensorCache(tmp_path)
    cache.write(KEY, {"mean": torch.arange(6.0)})
    return cache


def refuse(monkeypatch, name, number, times=10**6):
    """Make a method of paths fail like the system, this many times."""
    original = getattr(Path, name)
    left = [times]

    def refusing(self, *arguments, **options):
        if self.suffix == ".safetensors" and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, name, refusing)


@pytest.mark.parametrize("ask", ["holds", "read"])
@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_entry_that_the_system_does_not_open_is_kept_and_named(cache, monkeypatch, ask, number):
    path = cache.path(KEY)
    with monkeypatch.context() as patch:
        refuse(patch, "open", number)
        with pytest.raises(DataError, match=f"{path} cannot be read.*{os.strerror(number).lower()}") as raised:
            getattr(cache, ask)(KEY)
    assert not isinstance(raised.value, AbsentEntry)
    assert torch.equal(cache.read(KEY)["mean"], torch.arange(6.0))
    assert cache.removed == []


def test_too_many_open_files_say_how_to_allow_more(cache, monkeypatch):
    refuse(monkeypatch, "open", errno.EMFILE)
    with pytest.raises(DataError, match=r"\nhint: raise the limit with `ulimit -n"):
        cache.read(KEY)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO], ids=errno.errorcode.get)
def test_what_passes_is_waited_for(cache, monkeypatch, number):
    refuse(monkeypatch, "open", number, times=2)
    assert torch.equal(cache.read(KEY)["mean"], torch.arange(6.0))


def test_an_error_while_reading_keeps_the_entry(cache, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", broken)
        with pytest.raises(DataError, match="input/output error"):
            cache.read(KEY)
    assert cache.holds(KEY)


def test_entry_that_is_not_there_is_absent_and_not_corrupt(cache):
    other = cache_key("other")
    assert not cache.holds(other)
    with pytest.raises(AbsentEntry) as raised:
        cache.read(other)
    assert not isinstance(raised.value, CorruptEntry)


def test_below_a_file_no_entry_is_taken_for_absent(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(DataError, match="cannot be read") as raised:
        TensorCache(tmp_path / "file").read(KEY)
    assert not isinstance(raised.value, AbsentEntry)


@pytest.mark.parametrize("ask", ["holds", "read"])
def test_good_entry_that_another_run_puts_in_place_of_a_corrupt_one_stays(cache, monkeypatch, ask):
    path = cache.path(KEY)
    good = path.read_bytes()
    path.write_bytes(good[:-3])
    original = Path.stat
    replaced = []

    def stat(self, **options):
        if self == path and not replaced:  # between reading and removal
            replaced.append(write_atomically(path, good))
        return original(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        if ask == "holds":
            assert not cache.holds(KEY)
        else:
            with pytest.raises(CorruptEntry):
                cache.read(KEY)
    assert replaced
    assert torch.equal(cache.read(KEY)["mean"], torch.arange(6.0))


def test_corrupt_entry_that_another_run_removes_meanwhile_is_no_error(cache, monkeypatch):
    path = cache.path(KEY)
    path.write_bytes(path.read_bytes()[:-3])
    original = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **options: (original(self), original(self)))
    assert not cache.holds(KEY)


def header(content):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(data)) + data


HEADERS = {
    "a list": header([1, 2]),
    "a number": header(3),
    "no tensors": header({}),
    "no offsets": header({"mean": {}}),
    "offsets that are text": header({"mean": {"data_offsets": "ab"}}),
    "offsets that are mixed": header({"a": {"data_offsets": [0, "b"]}, "b": {"data_offsets": [0, 1]}}),
    "an entry that is a number": header({"mean": 1}),
    "no text": header(b"\xff\xfe\xfd"),
    "deep": header(b"[" * 100_000),
    "longer than any file": struct.pack("<Q", 2**64 - 1) + b"{}",
    "zeros": bytes(500),
    "an unknown number format": header({"mean": {"dtype": "X9", "shape": [1], "data_offsets": [0, 1]}}) + b"a",
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_every_kind_of_nonsense_is_corrupt_and_removed(cache, content):
    path = cache.path(KEY)
    path.write_bytes(content)
    with pytest.raises(CorruptEntry):
        cache.read(KEY)
    assert not path.exists()
    path.write_bytes(content)
    if cache.holds(KEY):  # the size is right: reading tells
        with pytest.raises(CorruptEntry):
            cache.read(KEY)
    assert not path.exists()


def test_entry_without_the_tensors_that_are_needed_is_corrupt(cache):
    with pytest.raises(CorruptEntry, match=r"has only \['mean'\]"):
        cache.read(KEY, needed=("mean", "std"))
    assert not cache.holds(KEY)


def fail_in(monkeypatch, place, number):
    def broken(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*place, broken)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("place", [(os, "fsync"), (Path, "replace"), (Path, "mkdir")], ids=lambda place: place[1])
def test_failed_write_is_one_error_that_leaves_the_old_entry_and_no_other_file(cache, monkeypatch, place, number):
    with monkeypatch.context() as patch:
        fail_in(patch, place, number)
        with pytest.raises(DataError, match=f"{cache.path(KEY)} cannot be written .*{os.strerror(number).lower()}"):
            cache.write(KEY, {"mean": torch.zeros(3)})
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == [cache.path(KEY).name]
    assert torch.equal(cache.read(KEY)["mean"], torch.arange(6.0))


def test_the_first_error_is_reported_when_the_partial_file_cannot_be_removed_either(cache, monkeypatch):
    fail_in(monkeypatch, (os, "fsync"), errno.ENOSPC)
    fail_in(monkeypatch, (Path, "unlink"), errno.EROFS)
    with pytest.raises(DataError, match=r"no space left on device\)\nhint: free some space"):
        cache.write(KEY, {"mean": torch.zeros(3)})
