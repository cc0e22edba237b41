"""Samples held as text and arrays come back as they were."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from difftrain.data.files.local_image import LocalImage
from difftrain.data.packed import packed_images
from difftrain.data.packed.packed_images import JsonRows, PackedRecords
from difftrain.data.packed.packed_samples import PackedSamples
from difftrain.data.packed.sample_table import SampleTable
from difftrain.types import Geometry, ImageRecord, Panel, PlacedImage, Recipe, ReferenceChoice, Sample

KEYS = ("a.png", "deep/b.v2.jpg", "no extension", "é.png", "z\udcff.png", "日本.webp", 'q"uote\n.png')
SIZES = ((64, 64), (96, 48), (48, 96))


@st.composite
def placed_images(draw):
    key = draw(st.sampled_from(KEYS))
    file = draw(st.sampled_from([f"/data/{key}", f"/more/{key}", "/made/0a/0abc.png"]))
    special = draw(st.sampled_from([{}, {"panel": Panel(index=0, count=2)}, {"captions": ("of the source",)}]))
    width, height = draw(st.sampled_from(SIZES))
    record = ImageRecord(
        dataset_id=draw(st.sampled_from(["edits", "refs"])),
        key=draw(st.sampled_from([key.rpartition(".")[0] or key, "another"])),
        image=LocalImage(key=key, file=file, **special),
        width=width,
        height=height,
        content_hash=draw(st.text("0123456789abcdef", min_size=4, max_size=64)),
        captions=draw(st.sampled_from([None, (), ("",), ("red", "blue \udc80")])),
        recipe=draw(st.sampled_from([None, RECIPE])),
        focus=draw(st.sampled_from([None, (0.1, 1 / 3)])),
    )
    left = draw(st.integers(0, 3))
    return PlacedImage(
        record=record, geometry=Geometry(resize=(width + 3, height), crop=(left, 0), bucket=(width, height))
    )


RECIPE = Recipe(generator=object(), seed=3)


@st.composite
def samples(draw):
    target = draw(placed_images())
    captions = [("one",), ("one", "two", "")]
    return Sample(
        dataset_id=draw(st.sampled_from(["edits", "others"])),
        target=target,
        captions=draw(st.sampled_from(captions + ([target.record.captions] if target.record.captions else []))),
        choices=tuple(
            ReferenceChoice(
                references=tuple(draw(st.lists(placed_images(), max_size=2))),
                captions=draw(st.sampled_from([None, ("from the reference",)])),
            )
            for _ in range(draw(st.integers(1, 3)))
        ),
    )


@given(st.lists(samples(), max_size=6))
def test_samples_are_equal_to_what_was_packed(given_samples):
    packed = PackedSamples.of(given_samples)
    assert list(packed) == given_samples
    assert [packed[place] for place in range(len(packed))] == given_samples
    assert packed[1:4] == given_samples[1:4]
    assert len(packed) == len(given_samples)
    if given_samples:
        assert packed[-1] == given_samples[-1]
    with pytest.raises(IndexError):
        packed[len(given_samples)]


@given(st.lists(samples(), max_size=6))
def test_what_is_stored_gives_equal_samples_or_is_refused(given_samples):
    state = PackedSamples.of(given_samples).state()
    images = [one for sample in given_samples for one in every_image(sample)]
    plain = all(
        one.record.recipe is None and one.record.image.panel is None and one.record.image.captions is None
        for one in images
    )
    assert (state is not None) == plain
    if state is not None:
        again = PackedSamples.restored(json.loads(json.dumps(state[0])), state[1])
        assert list(again) == given_samples
        assert_same(again.table, SampleTable.of(given_samples))


def every_image(sample):
    return [sample.target, *(image for choice in sample.choices for image in choice.references)]


def assert_same(table, other):
    assert (table.datasets, table.shapes) == (other.datasets, other.shapes)
    for name, values in table.arrays().items():
        assert np.array_equal(values, other.arrays()[name]), name


@given(st.lists(samples(), min_size=1, max_size=5))
def test_random_crops_too_many_to_share_come_back(given_samples):
    shared, packed_images._MOST_GEOMETRIES = packed_images._MOST_GEOMETRIES, 1
    try:
        assert list(PackedSamples.of(given_samples)) == given_samples
    finally:
        packed_images._MOST_GEOMETRIES = shared


def test_the_table_says_what_an_epoch_needs():
    record = ImageRecord(
        dataset_id="edits", key="a", image=LocalImage.at(Path("/a.png")), width=64, height=64, content_hash="0"
    )

    def image(size):
        return PlacedImage(record=record, geometry=Geometry(resize=size, crop=(0, 0), bucket=size))

    choices = (
        ReferenceChoice(references=(image((64, 64)),), captions=("x", "y", "z")),
        ReferenceChoice(references=(image((48, 96)), image((64, 64)))),
    )
    two = [
        Sample(dataset_id="edits", target=image((64, 64)), captions=("one", "two"), choices=choices),
        Sample(dataset_id="plain", target=image((96, 48)), captions=("one",)),
    ]
    table = PackedSamples.of(two).table
    assert table.counts() == {"edits": 1, "plain": 1}
    assert table.first.tolist() == [0, 2, 3]
    assert table.captions.tolist() == [3, 2, 1]
    square, tall, wide = (64, 64), (48, 96), (96, 48)
    assert [table.shapes[place] for place in table.shape] == [(square, (square,)), (square, (tall, square)), (wide, ())]
    assert [table.shapes[place] for place in table.bare] == [(square, ()), (wide, ())]
    assert table.names[0] != table.names[1]
    assert SampleTable.of(PackedSamples.of(two)) is not table, "another packing has another table"


def test_keys_of_batches_are_asked_for_once():
    asked = []

    def key_of(sample):
        asked.append(sample)
        return sample.captions

    record = ImageRecord(
        dataset_id="edits", key="a", image=LocalImage.at(Path("/a.png")), width=8, height=8, content_hash="0"
    )
    target = PlacedImage(record=record, geometry=Geometry(resize=(8, 8), crop=(0, 0), bucket=(8, 8)))
    every = [Sample(dataset_id="edits", target=target, captions=(text,)) for text in ("a", "b", "a")]
    table = SampleTable.of(every)
    assert table.keys_by(key_of, every).tolist() == [0, 1, 0]
    assert table.keys_by(key_of, every).tolist() == [0, 1, 0]
    assert len(asked) == 3


@given(st.lists(placed_images(), max_size=5))
def test_records_and_texts_come_back(images):
    records = [image.record for image in images]
    assert list(PackedRecords.of(records)) == records
    assert list(JsonRows.of(record.key for record in records)) == [record.key for record in records]
