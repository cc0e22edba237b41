"""Large sets are read in other processes, ahead of what the scan does with them; that changes nothing but the time."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from data_plans import SilentReporter, caption, data_plan, local, new_image, reference_set, scanned, target_set

from difftrain.data.files.folder_digest import digest_of_folder
from difftrain.data.files.local_image import LocalImage
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.scanning import begun, image_index, many_files
from difftrain.data.scanning.begun import Begun
from difftrain.data.scanning.file_facts import read_all, read_files
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.machine.open_file import read_file

COUNT = 12


class Watched(SilentReporter):
    """Records which phases begin."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    @contextmanager
    def phase(self, name, total=None):
        self.events.append(name)
        with super().phase(name, total) as phase:
            yield phase


@pytest.fixture
def pools(monkeypatch):
    """Let threads stand in for the processes, already for few files; return what happens."""
    events = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, max_workers, **options):
            events.append("pool")
            super().__init__(max_workers)

        def map(self, work, parts):
            events.append("read")
            return super().map(work, parts)

        def submit(self, work, *given):
            if work is digest_of_folder:
                events.append(f"look at {Path(given[0].root).name}")
            return super().submit(work, *given)

    monkeypatch.setattr(many_files, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(many_files, "FEWEST_FOR_PROCESSES", COUNT)
    monkeypatch.setattr(many_files, "_A_PROCESS_TASK", 3)
    monkeypatch.setattr(image_index, "_IMAGES_A_CHUNK", 5)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return events


@pytest.fixture
def folders(tmp_path):
    for number in range(COUNT):
        caption(new_image(tmp_path / "edits" / f"{number:02}.png", seed=number), f"edit {number}")
        new_image(tmp_path / "references" / f"{number:02}.png", seed=100 + number)
    return tmp_path


def test_every_set_is_being_read_before_the_first_is_finished(folders, pools):
    plan = data_plan(folders, target_set(folders, references=["references"]), reference_set(folders))
    data = prepare_samples(plan, reporter=Watched(pools))
    assert pools[: pools.index("scan edits")].count("read") == 6  # chunks of 5, 5 and 2 files; 2 are too few
    assert pools.count("pool") == 1
    assert (data.hashed, data.captions_read) == (2 * COUNT, COUNT)
    assert [sample.captions for sample in data.samples] == [(f"edit {number}",) for number in range(COUNT)]
    assert len({sample.target.record.content_hash for sample in data.samples}) == COUNT


def test_other_sets_are_looked_at_in_processes_once_the_first_proves_large(folders, pools):
    plan = data_plan(folders, target_set(folders, references=["references"]), reference_set(folders))
    data = prepare_samples(plan, reporter=Watched(pools))
    assert pools[:3] == ["look at the files of edits", "pool", "look at references"]
    again = prepare_samples(plan, reporter=Watched(pools))
    assert pools[-1] == "look for changed files"
    assert list(again.samples) == list(data.samples)


def test_two_sets_of_one_folder_read_each_file_once(folders, pools):
    again = target_set(folders, "edits", max_num_samples=3)
    plans = (target_set(folders), again)
    with ImageIndex(folders / "index.sqlite") as index, index.shared_readers():
        both = [image_index_begun(plan, index) for plan in plans]
        first, second = [one.finish(SilentReporter().phase("scan").__enter__()) for one, _ in both]
        captions = [one.finish({}) for _, one in both]
        assert (index.hashed, index.captions_read) == (COUNT, COUNT)
    assert first == second
    assert captions[0] == captions[1] == [(f"edit {number}",) for number in range(COUNT)]


def image_index_begun(plan, index):
    images = plan.source.list_images()
    return index.begin_examine(images), index.begin_captions(plan.captions, images)


def test_what_processes_read_is_remembered_and_has_problems_named(folders, pools):
    (folders / "edits" / "03.png").write_bytes(b"no image")
    (folders / "edits" / "05.txt").write_bytes(b"\xff\xfe\0\0")
    with ImageIndex(folders / "index.sqlite") as index:
        first = scanned(target_set(folders), index)
        assert len(first.records) == COUNT - 1
        assert sorted(one.kind for one in first.findings) == ["unreadable", "unreadable_caption"]
        index.hashed = 0
        assert scanned(target_set(folders), index).records == first.records
        assert index.hashed == 0


def test_a_caption_of_an_image_that_is_left_out_is_no_problem(folders):
    (folders / "edits" / "03.png").write_bytes(b"no image")
    (folders / "edits" / "03.txt").write_bytes(b"\xff\xfe\0\0")
    with ImageIndex(folders / "index.sqlite") as index:
        scan = scanned(target_set(folders), index)
    assert [one.kind for one in scan.findings] == ["unreadable"]
    assert scan.unreadable_captions == frozenset()


def test_files_give_the_same_facts_as_their_images(tmp_path):
    new_image(tmp_path / "a.png", (40, 30))
    new_image(tmp_path / "b.jpg", (30, 40))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-60])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ["a.png", "b.jpg", "cut.jpg", "empty.png", "folder.png", "pipe.png", "missing.png"]
    images = [LocalImage(key=name, file=str(tmp_path / name)) for name in names]
    facts = read_files([image.file for image in images])
    assert facts == read_all([(image, None) for image in images], decode=False)
    assert [bool(one.error) for one in facts] == [False, False, True, True, True, True, True]
    assert facts[0].stamp == local([tmp_path / "a.png"])[0].stamp()


def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_bytes(b"0123456789")
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: read(descriptor, min(count, 4)))
    status, data = read_file(file)
    assert (status.st_size, data) == (10, b"0123456789")


def test_parts_begin_ahead_but_not_all_of_them(monkeypatch):
    monkeypatch.setattr(begun, "PARTS_AHEAD", 2)
    events = []

    def part(number):
        events.append(f"begin {number}")
        given = yield
        events.append(f"end {number}")
        return [number, given]

    work = Begun(part(number) for number in range(4))
    assert events == ["begin 0", "begin 1"]
    assert work.finish("x") == [0, "x", 1, "x", 2, "x", 3, "x"]
    assert events == ["begin 0", "begin 1", "begin 2", "end 0", "begin 3", "end 1", "end 2", "end 3"]
