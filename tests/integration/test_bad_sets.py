"""A set of rows that cannot be used is one error that says what to do, before any weight is loaded."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import EditPairs, new_image, run_in


@pytest.fixture
def run(tmp_path):
    """Return a function that trains on entries of a set of four rows in two files."""
    rows = [
        {"image": new_image(tmp_path / "one.png", (64, 64), seed=n).read_bytes(), "text": f"row {n}"} for n in range(4)
    ]
    (tmp_path / "set").mkdir()
    for number in (0, 1):
        part = pa.Table.from_pylist(rows[2 * number : 2 * number + 2])
        pq.write_table(part, tmp_path / f"set/{number}.parquet", row_group_size=1, use_dictionary=False)

    def train(*entries):
        common = {"type": "huggingface", "dataset_name": "set", "caption_strategy": "huggingface", "resolution": 64}
        listed = [{"id": f"set-{n}", **common, **entry} for n, entry in enumerate(entries)]
        (tmp_path / "datasets.json").write_text(json.dumps(listed))
        arguments = (*EditPairs(tmp_path).kontext, "--data_backend_config", "datasets.json", "--max_train_steps", 1)
        return run_in(tmp_path, *arguments)

    return train


def assert_one_error(ended, *parts):
    assert ended.status == 2, ended.err
    assert ended.err.count("error: ") == 1
    for never in ("Traceback", "load ", "encode "):
        assert never not in ended.err, ended.err
    for part in parts:
        assert part in ended.err, ended.err


def test_the_set_of_these_tests_trains(run):
    assert run({}).status == 0


def test_wrong_values_of_two_entries_are_told_together_before_anything_is_read(run):
    wrong = {"huggingface": {"image_colunm": "x", "filter_func": {"min_widht": 3}}}
    ended = run({**wrong}, {"huggingface": {"composite_image_config": {"enabled": True, "select_index": 1}}})
    assert_one_error(
        ended, "dataset 'set-0': ", "did you mean 'image_column'?", "filter_func: unknown key 'min_widht'",
        "dataset 'set-1': ", "select_index 1 must be below image_count 1",
    )  # fmt: skip
    assert "scan" not in ended.err


def test_a_column_that_does_not_exist(run):
    ended = run({"huggingface": {"caption_column": "txt"}})
    assert_one_error(ended, "caption_column 'txt' does not exist; did you mean 'text'?")


def test_a_file_that_is_cut_off(run, tmp_path):
    file = tmp_path / "set/1.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    assert_one_error(run({}), "set/1.parquet cannot be read (", "Parquet")


def test_a_damaged_row_group_is_named_by_its_rows(run, tmp_path):
    file = tmp_path / "set/1.parquet"
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    damaged = bytearray(file.read_bytes())
    damaged[start : start + 40] = b"\xff" * 40
    file.write_bytes(damaged)
    assert_one_error(run({}), "dataset 'set-0': 1 of 4 images cannot be read: ", "set/1.parquet: row 3, column image (")


def test_without_pyarrow(run, monkeypatch):
    monkeypatch.setattr("difftrain.data.tables.set_options.importlib.util.find_spec", lambda _: None)
    ended = run({}, {"type": "local", "instance_data_dir": "set", "caption_strategy": "parquet", "dataset_name": None})
    assert_one_error(
        ended, "type = huggingface needs pyarrow, which is not installed", "hint: pip install 'difftrain[hf]'",
        "caption_strategy = parquet needs pyarrow",
    )  # fmt: skip
