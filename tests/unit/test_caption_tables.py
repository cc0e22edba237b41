"""Captions of local images from parquet, jsonl and csv tables, and from ``metadata.*`` in their folders."""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from conftest import new_image
from difftrain.data.files.local_image import LocalImage
from difftrain.data.tables import plain_tables, set_options
from difftrain.data.tables.caption_tables import CsvCaptions, JsonLinesCaptions, ParquetCaptions
from difftrain.errors import DataError

SOURCES = {"parquet": ParquetCaptions, "jsonl": JsonLinesCaptions, "csv": CsvCaptions}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(f'"{row[key]}"' for key in rows[0]) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


def check(command, folder, *flags, **entry):
    """Return how ``difftrain check`` ends for one entry, of images in ``photos`` unless it says otherwise."""
    values = {"id": "photos", "instance_data_dir": "photos", "resolution": 64, **entry}
    (folder / "datasets.json").write_text(json.dumps([{key: one for key, one in values.items() if one is not ...}]))
    run = {"model_family": "flux", "model_flavour": "dev", "pretrained_model_name_or_path": "tiny-random",
           "data_backend_config": "datasets.json", "output_dir": "out", "max_train_steps": 1}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(run))
    return command("check", *flags, "--config", "config.json")


def image(root, key):
    return LocalImage(key=key, file=f"{root}/{key}")


@pytest.mark.parametrize("kind", SOURCES)
def test_metadata_in_the_nearest_folder_names_the_images(tmp_path, kind):
    write(tmp_path / f"metadata.{kind}", [
        {"file_name": "a.png", "text": "at the top"}, {"file_name": "sub/deep/c.png", "text": "from above"},
        {"file_name": "b.png", "text": "never: another folder"},
    ])  # fmt: skip
    write(tmp_path / "sub" / f"metadata.{kind}", [{"file_name": "b.png", "text": "below"}])
    source = SOURCES[kind]()
    assert source.captions(image(tmp_path, "a.png")) == ("at the top",)
    assert source.captions(image(tmp_path, "sub/b.png")) == ("below",)
    # the nearest table counts, even if it does not name the image
    assert source.captions(image(tmp_path, "sub/deep/c.png")) is None
    assert source.captions(image(tmp_path, "other/b.png")) is None
    assert [str(file) for file in source.files(image(tmp_path, "sub/b.png"))] == [
        f"{tmp_path}/sub/metadata.{kind}", f"{tmp_path}/metadata.{kind}",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_a_named_table_with_its_own_columns(tmp_path, kind):
    rows = [{"id": "a", "short": "", "long": "a long one"}, {"id": "b.png", "short": "b", "long": "never"}]
    path = write(tmp_path / f"captions.{kind}", rows)
    block = {
        "path": str(path), "filename_column": "id", "caption_column": ["short"], "fallback_caption_column": "long",
        "identifier_includes_extension": False,
    }  # fmt: skip
    source = SOURCES[kind](**{kind: block})
    assert source.captions(image("/photos", "sub/a.png")) == ("a long one",)
    assert source.captions(image("/photos", "b.png")) == ("b",)
    assert source.captions(image("/photos", "c.png")) is None


def test_lists_and_repeated_rows_are_several_captions(tmp_path):
    rows = [{"file_name": "a.png", "text": ["one", "two"]}, {"file_name": "a.png", "text": "three"}]
    write(tmp_path / "metadata.jsonl", rows)
    assert JsonLinesCaptions().captions(image(tmp_path, "a.png")) == ("one", "two", "three")


def test_a_changed_table_is_read_again(tmp_path):
    path = write(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "old"}])
    source = JsonLinesCaptions()
    assert source.captions(image(tmp_path, "a.png")) == ("old",)
    write(path, [{"file_name": "a.png", "text": "newer"}])
    assert source.captions(image(tmp_path, "a.png")) == ("newer",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.png", "text": "x"}\n{"file', "metadata.jsonl:2: is not JSON"),
        ("[1]", "metadata.jsonl:1: is not an object"),
        ('{"image": "a.png"}', "none of the columns file_name, filename, id, but: image\nhint: set filename_column"),
        ('{"file_name": "a.png", "txt": "x"}', "none of the columns text, caption, prompt"),
        ('{"file_name": null, "text": "x"}', "row 1 has no file_name"),
    ],
)
def test_what_cannot_be_used_in_a_table_is_named(tmp_path, text, message):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError) as caught:
        JsonLinesCaptions().captions(image(tmp_path, "a.png"))
    assert message in str(caught.value)


def test_a_column_or_table_that_does_not_exist_is_named(tmp_path):
    path = write(tmp_path / "t.csv", [{"file_name": "a.png", "caption": "x"}])
    with pytest.raises(DataError, match=r"caption_column 'captoin' does not exist; did you mean 'caption'\?"):
        CsvCaptions(csv={"path": str(path), "caption_column": "captoin"}).captions(image(tmp_path, "a.png"))
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        CsvCaptions(csv={"path": "none.csv"}).captions(image(tmp_path, "a.png"))
    (tmp_path / "broken.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"broken\.parquet: cannot be read"):
        ParquetCaptions(parquet={"path": str(tmp_path / "broken.parquet")}).captions(image(tmp_path, "a.png"))


def test_a_table_that_cannot_be_read_is_read_once_and_told_once(tmp_path, monkeypatch, command):
    for name in ("a", "b", "c"):
        new_image(tmp_path / "photos" / f"{name}.png", (64, 64), seed=ord(name))
    (tmp_path / "photos/metadata.jsonl").write_text("nonsense")
    reads = []
    real = plain_tables._lines
    monkeypatch.setattr(plain_tables, "_lines", lambda file: reads.append(file) or real(file))
    ended = check(command, tmp_path, caption_strategy="jsonl")
    assert ended.status == 2
    assert ended.err.count("metadata.jsonl:1: is not JSON") == 1
    assert len(reads) == 1


def test_the_block_parquet_may_name_json_lines_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(set_options.importlib.util, "find_spec", lambda _: None)
    path = write(tmp_path / "t.jsonl", [{"id": 7, "description": "a cat"}])
    block = {"path": str(path), "width_column": "width", "height_column": "height"}
    assert ParquetCaptions(parquet=block).captions(image("/photos", "7.jpg")) == ("a cat",)
    with pytest.raises(ValidationError, match="needs pyarrow, which is not installed"):
        ParquetCaptions(parquet={"path": "t.parquet"})


def test_json_lines_may_lack_keys(tmp_path):
    rows = [{"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "long": "b"}]
    path = write(tmp_path / "t.jsonl", rows)
    block = {"path": str(path), "caption_column": "text", "fallback_caption_column": "long"}
    assert JsonLinesCaptions(jsonl=block).captions(image("/photos", "b.png")) == ("b",)


def test_a_prompt_stands_before_captions_of_a_table(tmp_path):
    write(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "a cat"}])
    source = JsonLinesCaptions(instance_prompt="sks", prepend_instance_prompt=True)
    assert source.captions(image(tmp_path, "a.png")) == ("sks a cat",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,text\na.png,red, blue\n", r"t\.csv:2: has 3 fields, and the header 2: file_name, text\nhint: put"),
        ("file_name,text,x\na.png,red\n", r"t\.csv:2: has 2 fields, and the header 3"),
        ('file_name,text\na.png,"red\nb.png,blue\n', r"t\.csv:\d: is not CSV"),
    ],
)
def test_a_csv_that_would_lose_parts_of_captions_is_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        CsvCaptions(csv={"path": str(tmp_path / "t.csv")}).captions(image(tmp_path, "a.png"))


def test_wrong_keys_of_the_block_are_refused():
    with pytest.raises(ValidationError, match="unknown key 'filename_colum'; did you mean 'filename_column'"):
        CsvCaptions(csv={"filename_colum": "x"})


def test_check_takes_captions_from_metadata(command, tmp_path):
    for name in ("a", "b"):
        new_image(tmp_path / "photos" / f"{name}.png", (64, 64), seed=ord(name))
    write(tmp_path / "photos/metadata.jsonl", [{"file_name": f"{name}.png", "text": f"an {name}"} for name in "ab"])
    ended = check(command, tmp_path, "--json", caption_strategy="jsonl")
    assert ended.status == 0, ended.err + ended.out
    assert (ended.json["samples"], ended.json["files"]["captions_read"]) == (2, 2)
    (tmp_path / "photos/metadata.jsonl").write_text('{"file_name": "a.png", "text": "an a"}\n')
    ended = command("check", "--config", "config.json")
    assert ended.status == 2
    assert "b.png" in ended.err
