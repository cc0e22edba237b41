"""Sets whose images a CSV table names: ``type: csv``."""

from __future__ import annotations

import pytest
from test_caption_tables import check

from conftest import new_image
from difftrain.data.tables.csv_set import CsvSource
from difftrain.errors import DataError


def table(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "set.csv").write_text(text)
    return folder / "set.csv"


def listed(file, **options):
    return {image.key: image for image in CsvSource(csv_file=file, **options).survey({}).images}


def test_rows_name_files_below_the_table_below_a_folder_or_anywhere(tmp_path):
    file = table(
        tmp_path / "t", f"url,caption\na.png,one\n{tmp_path}/else/b.png,two\nfile://{tmp_path}/t/c.png,three\n"
    )
    images = listed(file)
    assert {image.file for image in images.values()} == {
        f"{tmp_path}/t/a.png", f"{tmp_path}/else/b.png", f"{tmp_path}/t/c.png",
    }  # fmt: skip
    assert images["a.png"].captions == ("one",)
    assert images["c.png"].captions == ("three",)
    assert listed(file, instance_data_dir=tmp_path / "p")["a.png"].file == f"{tmp_path}/p/a.png"


def test_the_columns_are_chosen_and_rows_of_one_file_are_several_captions(tmp_path):
    file = table(tmp_path, "photo,url,title\na.png,x,first\na.png,y,second\nb.png,z,\n")
    images = listed(file, csv_url_column="photo", csv_caption_column="title")
    assert [image.captions for image in images.values()] == [("first", "second"), None]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "url,caption\na.png,x\nhttps://e.org/b.png,y\n", {},
            r"set\.csv: 1 of 2 rows name urls, which are not downloaded \(line 3: https://e\.org/b\.png\)\nhint: down",
        ),
        ("url,caption\na.png,x\n", {"csv_url_column": "uri"}, "'uri' does not exist; did you mean 'url'"),
        ("photo,caption\na.png,x\n", {}, r"none of the columns url, .* but: photo, caption\nhint: set csv_url_column"),
        ("url,caption\n", {}, "has no rows below its header"),
        ("url,caption\n ,x\n", {}, r"set\.csv:2: has no url"),
        ("url\na.png\n", {"csv_caption_column": "text"}, "csv_caption_column 'text' does not exist; there are: url"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path, text, options, message):
    with pytest.raises(DataError, match=message):
        listed(table(tmp_path, text), **options)


def test_a_table_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"csv_file .*none\.csv does not exist\nhint: relative paths start at"):
        listed(tmp_path / "none.csv")


def test_check_takes_a_users_csv_entry_with_its_captions(command, tmp_path):
    for name in ("a", "b"):
        new_image(tmp_path / "photos" / f"{name}.png", (64, 64), seed=ord(name))
    table(tmp_path, "url,caption,other\nphotos/a.png,an a,\nphotos/b.png,a b,x\n")
    entry = {
        "type": "csv", "instance_data_dir": ..., "csv_file": "set.csv", "csv_caption_column": "caption",
        "csv_url_column": "url", "csv_cache_dir": "cache/csv", "caption_strategy": "csv", "metadata_backend": "csv",
    }  # fmt: skip
    ended = check(command, tmp_path, "--json", **entry)
    assert ended.status == 0, ended.err
    assert (ended.json["samples"], ended.json["datasets"]["photos"]["images"]) == (2, 2)
    ended = check(command, tmp_path, **{**entry, "csv_caption_column": "other"})
    assert ended.status == 2
    assert "1 of 2 images have no caption: photos/a.png\nhint: name each one in the table, with a caption" in ended.err


def test_files_that_are_not_there_are_named(command, tmp_path):
    table(tmp_path, "url,caption\nphotos/a.png,an a\n")
    ended = check(command, tmp_path, type="csv", instance_data_dir=..., csv_file="set.csv", caption_strategy="csv")
    assert ended.status == 2
    assert "photos/a.png (no such file" in ended.err.lower()


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_types_that_do_not_exist_are_told_with_what_to_set(command, tmp_path, kind):
    ended = check(command, tmp_path, type=kind, instance_data_dir=..., **{kind: {"path": "x"}})
    assert ended.status == 2
    assert f"type {kind!r}: a set whose rows hold the images is type = huggingface" in ended.err
    assert f"caption_strategy = {kind}" in ended.err
    assert "unknown key" not in ended.err
