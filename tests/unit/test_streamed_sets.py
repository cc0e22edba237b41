"""Sets that stream: each row group is read once an epoch, few are held, and nothing of the hub is kept."""

from __future__ import annotations

import io
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_epoch import sample

from difftrain.data.caching.decoded_groups import decoded_groups
from difftrain.data.packed.packed_samples import PackedSamples
from difftrain.data.packed.sample_table import SampleTable
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.streaming.epoch import plan_epoch
from difftrain.data.streaming.set_rules import EpochRules, SetRules
from difftrain.data.streaming.shelf_windows import ShelfWindows
from difftrain.data.tables import row_groups, table_file
from difftrain.data.tables.huggingface import HuggingFaceSource
from difftrain.errors import DataError
from difftrain.types import Geometry, ImageRecord, PlacedImage, ReferenceChoice, Sample

LIMIT = 2**20
RULES = EpochRules(seed=1, batch_size=3, sets={"set": SetRules(by_shelf=True)})


class NoPhase:
    def advance(self, *_, **__):
        pass


def noise(number, size=(64, 64)):
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Write 300 images of 12 KiB in groups of 20, three and a half times what is kept."""
    path = tmp_path_factory.mktemp("set") / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    sizes = [(64, 64), (96, 48), (64, 64)]
    rows = [{"image": noise(number, sizes[number % 3]), "caption": f"row {number}"} for number in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20)
    return path


@pytest.fixture
def loads(monkeypatch):
    """Keep little in memory, and count which row groups are decoded."""
    kept = row_groups.KeptGroups(LIMIT)
    monkeypatch.setattr(table_file, "kept_groups", lambda: kept)
    monkeypatch.setitem(ShelfWindows.__init__.__kwdefaults__, "limit", LIMIT)
    counted = Counter()
    real = table_file._ParquetFile._group

    def group(self, number, column):
        counted[number] += 1
        return real(self, number, column)

    monkeypatch.setattr(table_file._ParquetFile, "_group", group)
    return counted


POOLS = []
"""Never freed: files that are still open go on using theirs."""


@pytest.fixture
def decoded():
    """Return a function that gives the most bytes that Arrow has held since."""
    before = pa.default_memory_pool()
    POOLS.append(pa.proxy_memory_pool(before))
    pa.set_memory_pool(POOLS[-1])
    table_file._opened.cache_clear()
    yield POOLS[-1].max_memory
    pa.set_memory_pool(before)
    table_file._opened.cache_clear()


def listed(path, **options):
    return HuggingFaceSource(dataset_name=str(path), **{"streaming": True, **options}).survey({}).images


def samples_of(images):
    made = []
    for number, image in enumerate(images):
        size = (64, 64) if number % 3 != 1 else (96, 48)
        record = ImageRecord(
            dataset_id="set", key=image.key, image=image, width=size[0], height=size[1], content_hash=image.key
        )
        placed = PlacedImage(record=record, geometry=Geometry(resize=size, crop=(0, 0), bucket=size))
        choices = (ReferenceChoice(references=()),)
        made.append(Sample(dataset_id="set", target=placed, captions=("x",), choices=choices))
    return made


def windows_of(samples, limit=None):
    """Return how many windows samples have, and the window of each."""
    limits = {} if limit is None else {"limit": limit}
    windows = ShelfWindows(SampleTable.of(samples), samples, 0, RULES, **limits)
    return len(set(windows.kinds.tolist())), windows.kinds.tolist()


def read(batches):
    """Read the images of some batches; return their keys."""
    images = [visit.sample.target.record.image for batch in batches for visit in batch]
    for image in images:
        assert image.open().read(4) == b"\x89PNG"
    return [image.key for image in images]


def test_an_epoch_reads_each_row_group_once_and_holds_few(parquet, loads, decoded):
    samples = samples_of(listed(parquet))
    loads.clear()
    keys = read(plan_epoch(samples, 0, RULES))
    assert sorted(keys) == [one.target.record.key for one in samples]
    assert loads == Counter(range(15))
    total = sum(len(noise(number)) for number in range(300))
    assert decoded() < 2 * LIMIT < total
    # shuffled: neither the rows nor the groups come in their order
    assert [int(key) // 20 for key in keys] != sorted(int(key) // 20 for key in keys)
    assert read(plan_epoch(samples, 1, RULES)) != keys


def test_without_windows_row_groups_would_be_read_again_and_again(parquet, loads):
    read(plan_epoch(samples_of(listed(parquet)), 0, EpochRules(seed=1, batch_size=3)))
    assert sum(loads.values()) > 50


def test_an_epoch_goes_on_where_it_was_left_and_reads_only_what_is_left(parquet, loads):
    samples = samples_of(listed(parquet))
    whole = plan_epoch(samples, 3, RULES)
    taken = {visit.number for batch in whole[:40] for visit in batch}
    loads.clear()
    rest = plan_epoch(samples, 3, RULES, taken)
    assert list(rest) == whole[40:]
    read(rest)
    assert set(loads.values()) == {1}
    assert len(loads) < 15


def test_a_scan_reads_each_row_group_once_in_whatever_order_images_are_asked_for(parquet, loads, decoded, tmp_path):
    images = listed(parquet)
    random.Random(1).shuffle(images)
    with ImageIndex(tmp_path / "index.sqlite") as index:
        facts = index.examine(images, NoPhase())
        assert loads == Counter(range(15))
        assert decoded() < 2 * LIMIT
        assert index.examine(images, NoPhase()) == facts
        sizes = [(64, 64), (96, 48), (64, 64)]
        assert [(one.width, one.height) for one in facts] == [sizes[int(image.key) % 3] for image in images]
    assert sum(loads.values()) == 15


def test_filling_the_cache_reads_each_row_group_once(parquet, loads):
    images = [one.target for one in samples_of(listed(parquet, streaming=False))]
    loads.clear()
    groups = [group for group, _ in decoded_groups(images, 4)]
    assert {image.record.key for group in groups for image in group} == {image.record.key for image in images}
    assert all(len({image.geometry.bucket for image in group}) == 1 for group in groups)
    assert loads == Counter(range(15))


def test_batches_stay_within_a_window_and_are_nearly_full(parquet, loads):
    samples = samples_of(listed(parquet))
    _, windows = windows_of(samples)
    batches = plan_epoch(samples, 0, RULES)
    for batch in batches:
        assert len({windows[int(visit.sample.target.record.key)] for visit in batch}) == 1
    assert sum(map(len, batches)) / (3 * len(batches)) > 0.9


def test_a_group_larger_than_a_window_is_one_and_references_count(parquet):
    samples = samples_of(listed(parquet))
    assert windows_of(samples, limit=1)[0] == 15
    paired = [
        replace(sample(0), dataset_id="set", choices=(ReferenceChoice(references=(one.target,)),)) for one in samples
    ]
    assert windows_of(paired, limit=LIMIT)[0] == windows_of(samples, limit=LIMIT)[0] > 1


def test_windows_have_room_for_references_in_another_column(parquet):
    samples = samples_of(listed(parquet))

    def reference(one):
        image = one.target.record.image
        other = replace(image, group=replace(image.group, place="another column"))
        return replace(one.target, record=replace(one.target.record, image=other))

    paired = [replace(one, choices=(ReferenceChoice(references=(reference(one),)),)) for one in samples]
    assert windows_of(paired, limit=2 * LIMIT)[0] == windows_of(samples, limit=LIMIT)[0]
    assert windows_of(paired, limit=LIMIT)[0] > windows_of(samples, limit=LIMIT)[0]


def test_sets_that_do_not_stream_have_no_windows(parquet):
    samples = samples_of(listed(parquet))
    windows = ShelfWindows(SampleTable.of(samples), samples, 0, EpochRules(seed=1, batch_size=3))
    assert not windows.kinds.any()
    local = [sample(number) for number in range(9)]
    by_shelf = EpochRules(seed=1, batch_size=2, sets={"edits": SetRules(by_shelf=True)})
    assert list(plan_epoch(local, 0, by_shelf)) == list(plan_epoch(local, 0, EpochRules(seed=1, batch_size=2)))


def test_packed_samples_have_the_same_epochs(parquet, loads):
    samples = samples_of(listed(parquet))
    assert list(plan_epoch(PackedSamples.of(samples), 2, RULES)) == list(plan_epoch(samples, 2, RULES))


class FakeHub:
    """A hub with one set, whose files lie in a folder."""

    def __init__(self, folder):
        self.folder, self.opened, self.fails = folder, [], 0

    def dataset_info(self, name, *, revision, files_metadata):
        if name != "owner/name":
            raise huggingface_hub.errors.RepositoryNotFoundError(
                "no such set", response=SimpleNamespace(headers={}, request=None)
            )
        assert files_metadata
        names = [one.relative_to(self.folder).as_posix() for one in self.folder.rglob("*.parquet")]
        files = [SimpleNamespace(rfilename=one, blob_id=f"blob-{one}", size=1) for one in [*names, "README.md"]]
        return SimpleNamespace(sha=f"sha-of-{revision}", siblings=files)

    def open(self, path, mode, **_):
        assert mode == "rb"
        self.opened.append(path)
        if self.fails:
            self.fails -= 1
            raise huggingface_hub.errors.HTTPError("the line was cut")
        name, _, rest = path.partition("@")
        assert name == "datasets/owner/name"
        return (self.folder / rest.partition("/")[2]).open("rb")


@pytest.fixture
def hub(parquet, monkeypatch):
    table_file._opened.cache_clear()
    fake = FakeHub(parquet.parent.parent)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: fake)
    yield fake
    table_file._opened.cache_clear()


def test_rows_of_the_hub_are_read_there_at_the_listed_commit(hub, parquet, loads, tmp_path):
    images = listed("owner/name", revision="v1")
    assert [image.captions for image in images[:2]] == [("row 0",), ("row 1",)]
    assert images[299].open().read() == listed(parquet)[299].open().read()
    assert set(hub.opened) == {"datasets/owner/name@sha-of-v1/data/train-00000-of-00001.parquet"}
    assert images[5].place.startswith("hf://datasets/owner/name@v1/data/train-00000-of-00001.parquet: row 5")
    loads.clear()
    with ImageIndex(tmp_path / "index.sqlite") as index:
        index.examine(images, NoPhase())
        assert set(loads.values()) == {1}
        loads.clear()
        rest, blob = images[0].file.partition("v1/")[2], images[0].version.partition("@")[0]
        # another commit with the same file is the same rows
        file = SimpleNamespace(rfilename=rest, blob_id=blob)
        hub.dataset_info = lambda *_, **__: SimpleNamespace(sha="another", siblings=[file])
        index.examine(listed("owner/name", revision="v1"), NoPhase())
    assert not loads


def test_a_line_that_is_cut_is_tried_again_before_it_is_an_error(hub, monkeypatch):
    monkeypatch.setattr("difftrain.machine.retries.WAITS", (0, 0))
    hub.fails = 1
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet.* cannot be read .*the line was cut"):
        listed("owner/name", revision="v1")
    images = listed("owner/name", revision="v1")
    table_file._opened.cache_clear()
    hub.fails = 3
    with pytest.raises(OSError, match="the line was cut"):
        images[0].open()
    hub.fails = 2
    assert images[0].open().read(4) == b"\x89PNG"


def test_a_set_that_does_not_exist_or_has_no_parquet_is_named(hub, tmp_path):
    with pytest.raises(DataError, match=r"'owner/none' cannot be loaded from the hub \(no such set"):
        listed("owner/none")
    hub.folder = tmp_path
    with pytest.raises(DataError, match=r"has no parquet files, and streaming reads no others\nhint: try revision"):
        listed("owner/name", revision="v1")


def test_large_row_groups_are_noted_with_what_they_cost_and_how_to_write_smaller_ones(parquet, monkeypatch):
    assert HuggingFaceSource(dataset_name=str(parquet)).survey({}).notes == []
    monkeypatch.setattr("difftrain.data.tables.huggingface.KEPT_BYTES", 240_000)
    (note,) = HuggingFaceSource(dataset_name=str(parquet)).survey({}).notes
    assert "row groups hold more than" in note
    assert "reading one image decodes its whole group" in note
    assert "hint: write the files again in groups of 100 rows, as docs/rows.md shows, or set streaming = true" in note
