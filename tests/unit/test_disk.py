"""Space to be written is compared with free space, by file system."""

import shutil
from collections import namedtuple

import pytest

from difftrain.errors import MachineError
from difftrain.machine.disk import Need, check_room, describe_needs, files_bytes

Usage = namedtuple("Usage", "total used free")
GIB = 1 << 30


def need(folder, size, what="latents of 'edits'", option="cache_dir"):
    return Need(folder=folder, what=what, files=1, bytes=size, option=option)


@pytest.fixture
def free(monkeypatch):
    """Set the free space of every disk."""

    def set_free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 * GIB, 10 * GIB - size, size))

    return set_free


def test_too_little_room_names_folder_needed_free_and_remedy(tmp_path, free):
    free(GIB)
    with pytest.raises(MachineError) as raised:
        check_room([need(tmp_path / "not" / "there", 2 * GIB)])
    assert str(raised.value) == (
        f"not enough room on the disk of {tmp_path}/not/there: 2.0 GiB needed, 1.0 GiB free "
        f"(latents of 'edits' 2.0 GiB in {tmp_path}/not/there)\n"
        "hint: free some space, or set cache_dir to a folder on another disk"
    )


def test_what_shares_a_file_system_is_added_up(tmp_path, free):
    free(3 * GIB)
    check_room([need(tmp_path / "a", 2 * GIB)])
    check_room([need(tmp_path / "b", 2 * GIB)])
    with pytest.raises(MachineError, match=r"4\.0 GiB needed, 3\.0 GiB free"):
        check_room([need(tmp_path / "a", 2 * GIB), need(tmp_path / "b", 2 * GIB)])


def test_file_systems_are_distinguished(tmp_path, small_disk):
    folder, _ = small_disk
    with pytest.raises(MachineError) as raised:
        check_room([need(tmp_path, 4096), need(folder, 2 << 20), need(folder / "deeper", 1 << 20, "text embeddings")])
    (problem,) = raised.value.problems
    assert "3 MiB needed, 1 MiB free" in problem
    assert "text embeddings 1 MiB" in problem


def test_files_of_an_unknown_size_are_not_compared(tmp_path, free):
    free(0)
    check_room([need(tmp_path, 0)])
    assert files_bytes(5, 0) == 0


def test_files_take_whole_blocks():
    assert files_bytes(3, 4097) == 3 * 8192


def test_much_is_reported_with_what_is_free_and_little_is_not(tmp_path, free):
    free(3 * GIB)
    assert describe_needs([need(tmp_path, GIB // 2), need(tmp_path, GIB // 2)]) is None
    assert describe_needs([need(tmp_path, GIB), need(tmp_path, GIB // 2, "text embeddings"), need(tmp_path, 0)]) == (
        f"1.5 GiB will be written to disk: latents of 'edits' 1.0 GiB in {tmp_path}, "
        f"text embeddings 512 MiB in {tmp_path}; 3.0 GiB is free"
    )
