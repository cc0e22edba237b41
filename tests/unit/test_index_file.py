"""The index is only a cache: whatever happens to its file, the facts are right and the user is told once."""

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from data_plans import SilentReporter, caption, data_plan, local, new_image, target_set

from difftrain import DataError, LocalImage
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.scanning import index_file
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.scanning.index_file import FORMAT

COUNT = 300
"""Enough rows for a tree of several pages."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    first = new_image(folder / "000.png", (16, 16))
    return [first, *(linked(first, folder / f"{number:03}-{'long' * 20}.png") for number in range(1, COUNT))]


def linked(first, other):
    other.hardlink_to(first)
    return other


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "index.sqlite"


def look(path, files):
    """Return how many files were read, and the notes."""
    with ImageIndex(path) as index, SilentReporter().phase("scan") as phase:
        facts = index.examine(local(files), phase)
        assert [(one.width, one.height, one.error) for one in facts] == [(16, 16, None)] * len(files)
        return index.hashed, list(index.notes)


def filled(path, files):
    assert look(path, files) == (len(files), [])
    assert look(path, files) == (0, [])
    return path


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def text(path):
    path.write_bytes(b"this is not a database, but it is long enough" * 40)


def truncated(path):
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def truncated_in_a_page(path):
    os.truncate(path, path.stat().st_size - 5000)


def header_only(path):
    os.truncate(path, 100)


def overwritten(start, stop, byte):
    def spoil(path):
        content = bytearray(path.read_bytes())
        content[start:stop] = byte * (min(stop, len(content)) - start)
        path.write_bytes(content)

    spoil.__name__ = f"bytes_{start}_to_{stop}_are_{byte.hex()}"
    return spoil


def bit_in_a_value(path):
    content = path.read_bytes()
    place = content.index(b"long.png", 4096) + 60  # inside a content hash
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def other_tables(path):
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE images (other TEXT)")
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def fewer_columns(path):
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE images (place BLOB PRIMARY KEY, stamp TEXT)")


def a_write_ahead_log_of_format_1(path):
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE files (path TEXT)")
    connection.execute("PRAGMA user_version = 1")
    connection.close()


DAMAGES = [
    zeros,
    text,
    truncated,
    truncated_in_a_page,
    header_only,
    overwritten(100, 4096, b"\xff"),
    overwritten(0, 16, b"\0"),
    overwritten(4096, 1 << 30, b"\0"),
    overwritten(4096, 1 << 30, b"\xff"),
    overwritten(6000, 9000, b"x"),
    overwritten(20000, 30000, b"\x81"),
    bit_in_a_value,
    other_tables,
    fewer_columns,
    a_write_ahead_log_of_format_1,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_index_is_rebuilt_and_reported_once(path, files, damage):
    damage(filled(path, files))
    read, notes = look(path, files)
    assert (read, len(notes)) == (COUNT, 1)
    assert f"{path} cannot be used" in notes[0]
    assert "rebuilt" in notes[0]
    assert look(path, files) == (0, [])


@pytest.mark.parametrize("damage", DAMAGES[:-1], ids=lambda damage: damage.__name__)
def test_index_that_is_damaged_while_it_is_open_is_rebuilt(path, files, damage):
    filled(path, files)
    with ImageIndex(path) as index, SilentReporter().phase("scan") as phase:
        index.examine(local(files[:5]), phase)
        damage(path)
        new_image(files[0].parent / "new.png", (16, 16))
        facts = index.examine(local([*files, files[0].parent / "new.png"]), phase)
        assert {(one.width, one.error) for one in facts} == {(16, None)}
        assert len(index.notes) <= 1  # pages that SQLite holds in memory are whole
    read, notes = look(path, files)
    assert read == 0 or notes


def test_empty_file_is_a_new_index(path, files):
    path.parent.mkdir()
    path.touch()
    assert look(path, files) == (COUNT, [])
    assert look(path, files) == (0, [])


def test_damaged_caption_is_read_again(tmp_path, path):
    image = new_image(tmp_path / "a.png")
    caption(image, "make it blue")
    with ImageIndex(path) as index:
        index.captions(TextfileCaptions(), [LocalImage.at(image)])
    path.write_bytes(path.read_bytes().replace(b"make it blue", b"make it blur"))
    with ImageIndex(path) as index:
        assert index.captions(TextfileCaptions(), [LocalImage.at(image)]) == ([("make it blue",)], {})
        assert len(index.notes) == 1


def test_index_of_an_older_format_is_rebuilt_with_one_line(path, files):
    look(path, files)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 4")  # with other content hashes
    read, notes = look(path, files)
    assert read == COUNT
    assert len(notes) == 1
    assert "format 4 of a version whose caches have other keys); it is rebuilt, and files are read again" in notes[0]
    assert look(path, files) == (0, [])


def test_index_of_a_newer_format_stays_as_it_is(path, files):
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 97}")
        connection.execute("CREATE TABLE images (other TEXT)")
    before = path.read_bytes()
    read, notes = look(path, files)
    assert (read, len(notes)) == (COUNT, 1)
    assert f"written by a newer version (format {FORMAT + 97}, this one reads {FORMAT})" in notes[0]
    assert path.read_bytes() == before


def test_notes_of_the_index_reach_the_user(tmp_path):
    caption(new_image(tmp_path / "edits" / "a.png"), "red")
    plan = data_plan(tmp_path, target_set(tmp_path))
    prepare_samples(plan, reporter=SilentReporter())
    zeros(plan.index_path)
    (note,) = prepare_samples(plan, reporter=SilentReporter()).notes
    assert "rebuilt" in note


def test_the_journal_is_one_that_network_disks_can_have(path, files):
    with ImageIndex(path) as index, SilentReporter().phase("scan") as phase:
        index.examine(local(files[:1]), phase)
        assert not path.with_name("index.sqlite-wal").exists()
        assert path.read_bytes()[18:20] == b"\x01\x01"  # the file format's marks of a rollback journal


def test_locked_index_says_so(path, files, monkeypatch):
    filled(path, files)
    monkeypatch.setattr(index_file, "BUSY_SECONDS", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DataError, match=r"another program has locked the index.*\nhint: "):
        look(path, files)
    other.execute("COMMIT")
    other.close()
    assert look(path, files) == (0, [])


SCAN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from data_plans import SilentReporter
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.files.local_image import LocalImage
import difftrain.data.scanning.image_index as module
module._IMAGES_A_CHUNK = 10
with ImageIndex(Path(sys.argv[2])) as index, SilentReporter().phase("scan") as phase:
    facts = index.examine([LocalImage.at(path) for path in sorted(Path(sys.argv[3]).glob("*-long*.png"))], phase)
    assert all(one.width == 16 for one in facts)
    print(len(index.notes))
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_two_runs_at_once_share_the_index(path, files, damaged):
    if damaged:
        zeros(filled(path, files))
    arguments = [sys.executable, "-c", SCAN, Path(__file__).parent, str(path), str(files[0].parent)]
    runs = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert look(path, files[1:]) == (0, [])


def test_index_on_a_read_only_disk_is_read(small_disk, files):
    folder, protect = small_disk
    filled(folder / "index.sqlite", files)
    protect()
    assert look(folder / "index.sqlite", files) == (0, [])


def test_index_on_a_read_only_disk_is_done_without_where_it_lacks(small_disk, files):
    folder, protect = small_disk
    filled(folder / "index.sqlite", files[:100])
    protect()
    with ImageIndex(folder / "index.sqlite") as index, SilentReporter().phase("scan") as phase:
        index.examine(local(files), phase)
        assert index.hashed == COUNT - 100
        index.examine(local(files), phase)  # what it read stays known
        assert index.hashed == COUNT - 100
        assert len(index.notes) == 1
        assert "cannot be written" in index.notes[0]


@pytest.mark.parametrize("damage", [None, *DAMAGES], ids=lambda damage: getattr(damage, "__name__", "absent"))
def test_read_only_disk_without_a_usable_index_is_no_error(small_disk, files, damage):
    folder, protect = small_disk
    if damage:
        damage(filled(folder / "index.sqlite", files))
    protect()
    read, notes = look(folder / "index.sqlite", files)
    assert (read, bool(notes)) == (COUNT, True)


def test_index_folder_that_cannot_be_made_is_no_error(small_disk, files):
    folder, protect = small_disk
    protect()
    read, notes = look(folder / "cache" / "index.sqlite", files)
    assert (read, len(notes)) == (COUNT, 1)


def test_full_disk_is_one_error_with_the_path(small_disk, files):
    folder, _ = small_disk
    filled(folder / "index.sqlite", files[:10])
    with pytest.raises(OSError, match="No space"), (folder / "filler").open("wb") as filler:
        filler.write(bytes(1 << 20))
    told = rf"{folder}/index.sqlite: .* cannot be written .*full.*\nhint: free some space"
    with pytest.raises(DataError, match=told):
        look(folder / "index.sqlite", files)
    (folder / "filler").unlink()
    assert look(folder / "index.sqlite", files[:10]) == (0, [])


def test_file_that_may_not_grow_is_one_error_with_the_path(path, files):
    filled(path, files[:10])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limit[1]))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            look(path, files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert look(path, files[:10]) == (0, [])


@pytest.mark.parametrize("seconds", [-(10**9), 10**10, 1.5 * 10**10])
def test_times_that_no_database_can_hold_are_remembered(tmp_path, path, seconds):
    image = new_image(tmp_path / "a.png", (16, 16))
    os.utime(image, ns=(int(seconds) * 10**9, int(seconds) * 10**9))
    filled(path, [image])
    os.utime(image, ns=(int(seconds) * 10**9, int(seconds) * 10**9 + 10**9))
    assert look(path, [image]) == (1, [])


def test_names_that_are_not_utf_8_are_remembered(tmp_path, path):
    image = new_image(tmp_path / "a.png", (16, 16))
    other = image.rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    assert look(path, [other]) == (1, [])
    assert look(path, [other]) == (0, [])
