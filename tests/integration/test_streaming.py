"""A set that streams: trains on latents made on demand, resumes exactly, and says what it does."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from long_runs import ADAPTER, changed, losses

from conftest import EditPairs, new_image, run_in
from difftrain.data.streaming.shelf_windows import ShelfWindows
from difftrain.data.tables import row_groups, table_file

COMMON = {"type": "huggingface", "dataset_name": "pairs", "resolution": 64, "caption_strategy": "huggingface"}


def block(column):
    return {"streaming": True, "image_column": column, "caption_column": "text"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Write twelve pairs in groups of two rows; return (folder, arguments)."""
    folder = tmp_path_factory.mktemp("streaming")
    rows = []
    for number in range(12):
        images = [new_image(folder / "one.png", (64, 64), seed=number + side).read_bytes() for side in (0, 100)]
        rows.append({"edited": images[0], "original": images[1], "text": f"make it number {number}"})
    (folder / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs/train.parquet", row_group_size=2)
    entries = [
        {"id": "edits", **COMMON, "huggingface": block("edited"), "conditioning_data": "originals"},
        {"id": "originals", **COMMON, "huggingface": block("original"), "conditioning_type": "reference_strict"},
    ]
    (folder / "datasets.json").write_text(json.dumps(entries))
    return folder, (*EditPairs(folder).kontext, "--data_backend_config", "datasets.json", "--train_batch_size", 2)


def test_it_trains_on_latents_made_on_demand_and_resumes_exactly(pairs):
    folder, arguments = pairs
    arguments = changed(arguments, max_train_steps=10, cache_dir="whole-cache", output_dir="whole")
    whole = run_in(folder, *arguments)
    assert whole.status == 0, whole.err
    assert "dataset 'edits': streaming = true: images are encoded when a batch first needs them" in whole.err
    assert "24 images are encoded when a batch first needs them" in whole.err
    assert "encode images" not in whole.err
    assert len(list((folder / "whole-cache/vae/edits").rglob("*.safetensors"))) == 12

    in_parts = changed(arguments, cache_dir="parts-cache", output_dir="parts")
    first = run_in(folder, *changed(in_parts, max_train_steps=4))
    assert first.status == 0, first.err
    rest = run_in(folder, *in_parts)
    assert "resumed parts/checkpoint-4" in rest.err
    assert (folder / "parts" / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()
    assert losses(folder / "parts") == losses(folder / "whole")


def test_a_scan_and_an_epoch_decode_each_row_group_once_for_targets_and_once_for_references(pairs, monkeypatch):
    folder, arguments = pairs
    size = (folder / "pairs/train.parquet").stat().st_size // 6
    kept = row_groups.KeptGroups(5 * size // 2)  # two groups of both columns
    monkeypatch.setattr(table_file, "kept_groups", lambda: kept)
    monkeypatch.setitem(ShelfWindows.__init__.__kwdefaults__, "limit", 9 * size // 4)
    table_file._opened.cache_clear()
    arguments = changed(arguments, num_train_epochs=1, cache_dir="counted", output_dir="counted-out")
    decoded = []
    real = table_file._ParquetFile._group
    monkeypatch.setattr(
        table_file._ParquetFile,
        "_group",
        lambda self, group, column: decoded.append((group, column)) or real(self, group, column),
    )
    once = sorted((group, column) for group in range(6) for column in ("edited", "original"))
    ended = run_in(folder, *arguments)
    assert ended.status == 0, ended.err
    # the scan decodes images too, so they are not read a third time to see whether they are whole
    counts = Counter(decoded)
    assert sorted(counts) == once
    # what the scan read last may still be there
    assert max(counts.values()) == 2
