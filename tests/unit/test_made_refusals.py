"""Made images: those that the system cannot open are kept, and one that it cannot write gives one message."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_plans import SilentReporter, generator_plan
from test_generators import make, records

from difftrain import DataError, MachineError
from difftrain.data.samples.made_images import FEWEST_FOR_PROCESSES, make_missing, planned_records, room_needed
from difftrain.data.scanning import file_facts
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.machine import retries
from difftrain_conditioning_generators.superresolution import Superresolution


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0.0,))


@pytest.fixture
def made(tmp_path):
    """Return a plan, its sources, and the files of its images, made before; the index has forgotten them."""
    plan, sources = generator_plan(tmp_path, Superresolution()), records(tmp_path, 3)
    assert make(tmp_path, plan, sources).written == 3
    (tmp_path / "index.sqlite").unlink()
    return plan, sources, [record.image.path for record in planned_records(plan, sources)]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_image_that_the_system_does_not_open_is_kept_and_named(tmp_path, made, monkeypatch, number):
    plan, sources, paths = made
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    read = file_facts._content

    def refusing(image):
        if image.place == str(paths[1]):
            raise OSError(number, os.strerror(number), image.place)
        return read(image)

    with monkeypatch.context() as patch:
        patch.setattr(file_facts, "_content", refusing)
        with pytest.raises(DataError, match=f"1 of 3 made images cannot be opened: {paths[1]}") as raised:
            make(tmp_path, plan, sources)
    assert os.strerror(number).lower() in str(raised.value)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before
    again = make(tmp_path, plan, sources)
    assert (again.written, again.notes) == (0, ())


def test_image_that_cannot_be_looked_at_is_not_taken_for_missing(tmp_path, made, monkeypatch):
    plan, sources, paths = made
    cls = type(paths[0])
    original = cls.stat

    def refusing(self, **options):
        if self == paths[0]:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return original(self, **options)

    monkeypatch.setattr(cls, "stat", refusing)
    with pytest.raises(DataError, match=f"{paths[0]} cannot be examined .permission denied"):
        make(tmp_path, plan, sources)


def test_image_that_another_run_removes_meanwhile_is_made_again_without_a_note(tmp_path, made, monkeypatch):
    plan, sources, paths = made
    read = file_facts._content

    def vanishing(image):
        if image.place == str(paths[1]):
            paths[1].unlink(missing_ok=True)
        return read(image)

    with monkeypatch.context() as patch:
        patch.setattr(file_facts, "_content", vanishing)
        result = make(tmp_path, plan, sources)
    assert (result.written, result.notes) == (1, ())


def test_a_folder_that_cannot_be_written_is_no_error_while_all_images_are_there(tmp_path, made, small_disk):
    folder, protect = small_disk
    plan = generator_plan(folder, Superresolution())
    sources = records(tmp_path, 3)
    make(tmp_path, plan, sources[:2])
    protect()
    assert make(tmp_path, plan, sources[:2]).written == 0
    with pytest.raises(MachineError, match=f"{plan.folder}.* cannot be written .read-only file system"):
        make(tmp_path, plan, sources)


def test_a_full_disk_is_one_message_that_leaves_whole_images_only(tmp_path, small_disk):
    folder, _ = small_disk
    plan, sources = generator_plan(folder, Superresolution()), records(tmp_path, 8)
    with pytest.raises(OSError, match="No space"), (folder / "filler").open("wb") as filler:
        filler.write(bytes(2 << 20))
    os.truncate(folder / "filler", (1 << 20) - 60_000)
    with pytest.raises(DataError, match=f"{plan.folder}/.*png cannot be written .no space left on device"):
        make(tmp_path, plan, sources)
    (folder / "filler").unlink()
    assert [path for path in plan.folder.rglob("*") if path.name.startswith(".")] == []
    result = make(tmp_path, plan, sources)
    assert result.notes == ()


LIMITED = """
import resource, signal, sys
from pathlib import Path
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from data_plans import generator_plan
    from difftrain.errors import DataError
    from test_generators import make, records
    from difftrain_conditioning_generators.superresolution import Superresolution
    root = Path(sys.argv[2])
    plan, sources = generator_plan(root, Superresolution()), records(root, int(sys.argv[3]))
    assert make(root, plan, sources[:1]).written == 1  # and the index has its size
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
    try:
        make(root, plan, sources)
    except DataError as error:
        print("told:", error)
"""


def test_a_process_that_cannot_write_tells_the_first_one(tmp_path):
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    tests = Path(__file__).parent
    ended = subprocess.run(
        [sys.executable, script, tests, tmp_path / "root", str(FEWEST_FOR_PROCESSES + 5), "3000"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "told: " in ended.stdout, ended.stderr
    assert "file too large" in ended.stdout
    assert "Traceback" not in ended.stderr
    files = [path for path in (tmp_path / "root" / "cache" / "made").rglob("*") if path.is_file()]
    assert len(files) == 1


def test_room_for_made_images_counts_those_that_are_missing(tmp_path, made):
    plan, sources, paths = made
    assert room_needed(plan, sources).files == 0
    paths[0].unlink()
    need = room_needed(plan, sources)
    assert (need.files, need.folder) == (1, plan.folder)
    assert 96 * 64 * 2 <= need.bytes <= 96 * 64 * 2 + 4096


def test_images_made_on_demand_need_no_room(tmp_path):
    assert room_needed(generator_plan(tmp_path, Superresolution(), on_demand=True), records(tmp_path, 2)).files == 0


def test_image_that_was_just_made_is_not_decoded_again(tmp_path):
    plan, sources = generator_plan(tmp_path, Superresolution()), records(tmp_path, 2)
    with ImageIndex(tmp_path / "index.sqlite") as index:
        make_missing(plan, sources, index, SilentReporter())
        make_missing(plan, sources, index, SilentReporter())
        assert index.hashed == 0
