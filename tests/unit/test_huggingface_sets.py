"""Hugging Face sets: which rows, images and captions they give, and what is said of those that cannot be used."""

from __future__ import annotations

import io
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from difftrain.data.files.pixels import open_upright
from difftrain.data.tables.huggingface import HuggingFaceCaptions, HuggingFaceSource
from difftrain.errors import DataError


def png(colour, size=(32, 16)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def two_panels(left, right):
    image = Image.new("RGB", (64, 32), left)
    image.paste(Image.new("RGB", (32, 32), right), (32, 0))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def rows(count=4):
    return [
        {
            "image": {"bytes": png((number, 0, 0)), "path": None},
            "images": [png((number, 1, 0)), png((number, 2, 0))],
            "caption": f"caption {number}",
            "texts": {"all": [f"first {number}", f"second {number}"], "short": None if number % 2 else "short"},
            "collection": "a" if number < 2 else "b",
            "quality_assessment": {"sharpness": float(number)},
            "width": 32,
        }
        for number in range(count)
    ]


def write(path, listed, row_group_size=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(listed), path, row_group_size=row_group_size)
    return path


def source(path, **block):
    own = {key: block.pop(key) for key in ("split", "streaming", "revision") if key in block}
    return HuggingFaceSource(dataset_name=str(path), huggingface=block, **own)


def listed(path, **block):
    return source(path, **block).survey({}).images


def red(image):
    return open_upright(image).getpixel((0, 0))[0]


@pytest.fixture
def parquet(tmp_path):
    return write(tmp_path / "set.parquet", rows())


def test_rows_are_images_in_order_with_their_captions(parquet):
    images = listed(parquet)
    assert [image.key for image in images] == ["000000000", "000000001", "000000002", "000000003"]
    assert [image.captions for image in images] == [(f"caption {number}",) for number in range(4)]
    assert [red(image) for image in images] == [0, 1, 2, 3]
    assert images[2].place == f"{parquet}: row 2, column image"


def test_an_image_is_the_bytes_of_its_row_also_after_pickling_and_in_any_order(parquet):
    images = pickle.loads(pickle.dumps(listed(parquet)))
    assert [images[number].open().read() for number in (3, 0, 2)] == [png((number, 0, 0)) for number in (3, 0, 2)]
    assert len({image.stamp() for image in images}) == 4


def test_dotted_columns_with_list_indexes(parquet):
    images = listed(parquet, image_column="images.1", caption_column="texts.all.1")
    assert open_upright(images[3]).getpixel((0, 0)) == (3, 2, 0)
    assert images[3].captions == ("second 3",)


def test_a_list_of_captions_is_several_captions_and_the_fallback_fills_gaps(parquet):
    assert listed(parquet, caption_column="texts.all")[0].captions == ("first 0", "second 0")
    found = listed(parquet, caption_column="texts.short", fallback_caption_column="caption")
    assert [image.captions for image in found[:2]] == [("short",), ("caption 1",)]
    assert listed(parquet, caption_column="texts.short")[1].captions is None


def test_the_texts_of_several_columns_are_all_captions_and_a_description_comes_last(parquet):
    assert listed(parquet, caption_column=["caption", "texts.all.1"])[0].captions == ("caption 0", "second 0")
    found = listed(parquet, caption_column=["texts.short"], description_column="caption")
    assert [image.captions for image in found[:2]] == [("short",), ("caption 1",)]


def test_columns_may_stand_beside_the_block(parquet):
    beside = HuggingFaceSource(dataset_name=str(parquet), image_column="images.1", caption_column="texts.all.1")
    image = beside.survey({}).images[3]
    assert open_upright(image).getpixel((0, 0)) == (3, 2, 0)
    assert image.captions == ("second 3",)
    message = wrong(dataset_name="a/b", caption_column=["a", "b"], huggingface={"caption_column": "c"})
    assert "caption_column is 'a, b' beside the block huggingface and 'c' inside it; keep one" in message


def test_an_empty_text_is_an_empty_caption_and_null_is_none(tmp_path):
    texts = [{"image": png((1, 1, 1)), "caption": text} for text in (" ", None, "x")]
    found = listed(write(tmp_path / "set.parquet", texts))
    assert [image.captions for image in found] == [("",), None, ("x",)]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"image_column": "imag"}, "image_column 'imag' does not exist; did you mean 'image'?"),
        ({"caption_column": "texts.shor"}, "caption_column 'texts.shor' does not exist; did you mean 'texts.short'?"),
        ({"image_column": "width"}, "image_column 'width' holds int64, not images; columns that may: image, caption"),
        ({"caption_column": "width"}, "caption_column 'width' holds int64, not text"),
        ({"filter_func": {"quality_thresholds": {"sharp": 1}}}, "did you mean 'quality_assessment.sharpness'?"),
        ({"filter_func": {"min_height": 9}}, "hint: minimum_image_size of the dataset needs no column"),
        ({"filter_func": {"collection": "c"}}, "filter_func keeps none of 4 rows (4 not with collection in c)"),
        ({"split": "tset"}, "has no split 'tset'; splits: train"),
    ],
)
def test_what_does_not_exist_is_named_with_the_nearest(parquet, block, message):
    with pytest.raises(DataError) as caught:
        listed(parquet, **block)
    assert message in str(caught.value)
    assert "set.parquet" in str(caught.value)


def test_the_filter_keeps_rows_that_meet_all_conditions_and_their_numbers(parquet):
    block = {"collection": ["b", "c"], "quality_thresholds": {"sharpness": 3}, "min_width": 32}
    listing = source(parquet, filter_func=block).survey({})
    assert [image.key for image in listing.images] == ["000000003"]
    assert red(listing.images[0]) == 3
    assert listing.notes == [
        "filter_func keeps 1 of 4 rows: 2 not with collection in b, c, "
        "1 not with quality_assessment.sharpness at least 3"
    ]


def test_a_collection_may_be_a_list_or_a_number(tmp_path):
    for values in ([["a", "b"], ["c"], None], [1, 2, 3]):
        table = [{"image": png((1, 1, 1)), "collection": value} for value in values]
        path = write(tmp_path / f"{len(str(values))}.parquet", table)
        kept = listed(path, filter_func={"collection": ["b", "1"]})
        assert [image.key for image in kept] == ["000000000"]


def test_a_filter_that_keeps_nothing_says_how_many_rows_each_part_left_out(parquet):
    block = {"collection": "b", "quality_thresholds": {"sharpness": 3}, "min_width": 100}
    with pytest.raises(DataError) as caught:
        listed(parquet, filter_func=block)
    assert (
        "filter_func keeps none of 4 rows (2 not with collection in b, 1 not with quality_assessment.sharpness at "
        "least 3, 1 not with width at least 100)\nhint: lower the limits"
    ) in str(caught.value)


def test_unknown_keys_of_the_filter_are_refused_with_the_nearest():
    message = wrong(dataset_name="a/b", huggingface={"filter_func": {"quality_treshold": {"x": 1}, "min_widht": 2}})
    assert "filter_func: unknown key 'quality_treshold'; did you mean 'quality_thresholds'?" in message
    assert "filter_func: unknown key 'min_widht'; did you mean 'min_width'?" in message


def test_a_panel_is_cut_from_the_upright_image(tmp_path):
    path = write(tmp_path / "set.parquet", [{"image": two_panels((9, 0, 0), (5, 0, 0)), "caption": "x"}])
    cut = [
        listed(path, composite_image_config={"enabled": True, "image_count": 2, "select_index": index})[0]
        for index in (0, 1)
    ]
    assert [(open_upright(image).size, red(image)) for image in cut] == [((32, 32), 9), ((32, 32), 5)]
    assert cut[0].place != cut[1].place


@pytest.mark.parametrize("data", [b"no image", None])
def test_a_row_without_a_readable_image_is_named(tmp_path, data):
    path = write(tmp_path / "set.parquet", [{"image": png((1, 1, 1))}, {"image": data}])
    image = listed(path, composite_image_config={"enabled": True, "image_count": 2})[1]
    with pytest.raises(DataError, match=r"row 1, column image, panel 0 of 2: .*(not an image file|no image there)"):
        open_upright(image)


def test_a_changed_file_is_noticed(parquet):
    image = listed(parquet)[0]
    before = image.stamp()
    write(parquet, rows(5))
    with pytest.raises(OSError, match="has changed since"):
        image.open()
    assert listed(parquet)[0].stamp() != before


def test_the_splits_of_a_folder(tmp_path):
    write(tmp_path / "data" / "train-00001-of-00002.parquet", rows(1))
    write(tmp_path / "data" / "train-00000-of-00002.parquet", rows(3))
    write(tmp_path / "validation.parquet", rows(2))
    assert [red(image) for image in listed(tmp_path)] == [0, 1, 2, 0]
    assert len({image.key for image in listed(tmp_path)}) == 4
    assert len(listed(tmp_path, split="validation")) == 2
    with pytest.raises(DataError, match=r"has no split 'validatoin'; did you mean 'validation'. splits: train, valid"):
        listed(tmp_path, split="validatoin")


def test_a_set_saved_by_the_package_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    data = {"image": [{"bytes": png((n, 0, 0)), "path": None} for n in range(3)], "caption": ["a", "b", "c"]}
    one = datasets.Dataset.from_dict(data, features=features)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([2])}).save_to_disk(tmp_path / "both")
    assert [red(image) for image in listed(tmp_path / "one")] == [0, 1, 2]
    assert [red(image) for image in listed(tmp_path / "both", split="test")] == [2]
    assert listed(tmp_path / "both")[1].captions == ("b",)
    (tmp_path / "both" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"train/state\.json cannot be read, so the saved set is not complete"):
        listed(tmp_path / "both")


def test_paths_of_images_start_at_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(png((7, 0, 0)))
    path = write(tmp_path / "set.parquet", [{"image": {"bytes": None, "path": "a.png"}}])
    assert red(listed(path)[0]) == 7


def test_files_on_this_machine_need_no_network(parquet, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert len(listed(parquet.parent)) == 4


def test_what_is_no_set_is_named(tmp_path):
    for name, message in ((tmp_path / "none", "does not exist"), (tmp_path, "no parquet or arrow files")):
        with pytest.raises(DataError, match=message):
            listed(name)
    (tmp_path / "broken.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"broken\.parquet cannot be read"):
        listed(tmp_path / "broken.parquet")


def test_a_set_of_the_hub_is_only_fetched_for_the_chosen_split(tmp_path, monkeypatch):
    import huggingface_hub

    fetched = []

    def fetch(name, file, **asked):
        fetched.append((name, file, asked["revision"]))
        return str(write(tmp_path / file, rows(2)))

    files = ["README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert len(listed("owner/name", revision="v1")) == 2
    assert fetched == [("owner/name", "data/train-00000-of-00001.parquet", "v1")]


def test_a_set_of_the_hub_that_cannot_be_reached_is_named():
    with pytest.raises(DataError, match=r"'owner/none' is no path on this machine.*cache of the hub"):
        listed("owner/none")


def wrong(**keys):
    with pytest.raises(ValidationError) as caught:
        HuggingFaceSource(**keys)
    return str(caught.value)


def test_wrong_keys_are_refused_before_any_file_is_read():
    assert "dataset_name is missing" in wrong()
    both = wrong(huggingface={"image_colum": "x"})
    assert "dataset_name is missing" in both
    assert "did you mean 'image_column'" in both
    assert "unknown key 'caption_colum'; did you mean 'caption_column'?" in wrong(
        dataset_name="a/b", huggingface={"caption_colum": "x"}
    )
    several = wrong(
        dataset_name="a/b",
        huggingface={
            "composite_image_config": {"enabled": True, "image_count": 2, "select_index": 2},
            "filter_func": {"min_width": 0},
        },
    )
    assert "select_index 2 must be below image_count 2" in several
    assert "min_width must be at least 1" in several
    assert "beside the block huggingface" in wrong(dataset_name="a/b", split="x", huggingface={"split": "y"})


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("difftrain.data.tables.set_options.importlib.util.find_spec", lambda name: None)
    assert "hint: pip install 'difftrain[hf]'" in wrong(dataset_name="a/b")


def test_captions_of_rows_need_rows(parquet, tmp_path):
    from difftrain.data.files.local_image import LocalImage

    assert HuggingFaceCaptions().captions(listed(parquet)[1]) == ("caption 1",)
    with pytest.raises(DataError, match="no row of a Hugging Face set"):
        HuggingFaceCaptions().captions(LocalImage.at(tmp_path / "a.png"))


def test_rows_that_one_set_filters_are_no_missing_partners_in_the_other(tmp_path):
    path = write(tmp_path / "set.parquet", [{"image": png((n, 1, 1)), "collection": "ab"[n % 2]} for n in range(4)])
    source = HuggingFaceSource(dataset_name=str(path), huggingface={"filter_func": {"collection": "a"}})
    listing = source.survey({})
    assert [image.key for image in listing.images] == ["000000000", "000000002"]
    assert listing.left_out == {"filter_func": ["000000001", "000000003"]}
