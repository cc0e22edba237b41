"""Images that are one panel of a file: the scan reads headers, training sees the panel, pairs stay aligned."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
from data_plans import SilentReporter, data_plan, reference_set, target_set
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from difftrain import DataError, DataSource, Listing, Panel, SourceImage
from difftrain.data.files.pixels import load_placed, open_upright, upright_size
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.scanning.file_facts import read_all

ROTATED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob(SourceImage):
    """Bytes in memory."""

    data: bytes = field(repr=False)

    @property
    def place(self):
        return f"shelf: {self.key}, {self.panel}"

    def stamp(self):
        return "1"

    def open(self):
        return io.BytesIO(self.data)


class Rows(DataSource):
    """Images by row; an options class keeps no state."""

    name: ClassVar[str] = "rows"

    def list_images(self):
        return self.survey({}).images

    def survey(self, written):
        return LISTINGS[id(self)]


LISTINGS: dict[int, Listing] = {}


def wide(colours, height=64, orientation=None, **saving):
    """Return a PNG of vertical stripes, each 64 pixels wide."""
    image = Image.new("RGB", (64 * len(colours), height))
    for number, colour in enumerate(colours):
        image.paste(colour, (64 * number, 0, 64 * (number + 1), height))
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = image.transpose(Image.Transpose.ROTATE_90)
        saving["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, "PNG", **saving)
    return stream.getvalue()


def rows(plan, images=(), **listing):
    source = Rows()
    LISTINGS[id(source)] = Listing(images=images, **listing)
    return replace(plan, source=source, takes_source_captions=not plan.is_reference)


def prepare(root, *plans):
    return prepare_samples(data_plan(root, *plans), reporter=SilentReporter())


def halves(count=2, index=0, captions=("x",)):
    return [
        Blob(
            key=f"{row:03}", data=wide(["red", "blue"], 64 + row), panel=Panel(index=index, count=2), captions=captions
        )
        for row in range(count)
    ]


@given(width=st.integers(1, 500), height=st.integers(1, 500), count=st.integers(1, 20))
def test_panels_have_one_size_and_never_overlap(width, height, count):
    if width < count:
        with pytest.raises(ValueError, match="has no"):
            Panel(index=0, count=count).size_in((width, height))
        return
    boxes = [Panel(index=index, count=count).box_in((width, height)) for index in range(count)]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {
        Panel(index=0, count=count).size_in((width, height))
    }
    assert all(first[2] == second[0] for first, second in itertools.pairwise(boxes))
    assert boxes[0][0] == 0
    assert width - count < boxes[-1][2] <= width


@pytest.mark.parametrize("index", [-1, 2])
def test_a_panel_that_does_not_exist_cannot_be_meant(index):
    with pytest.raises(ValueError, match=f"panel {index} of 2 does not exist"):
        Panel(index=index, count=2)


@pytest.mark.parametrize("orientation", [None, ROTATED])
@pytest.mark.parametrize("index", [0, 1])
def test_the_pixels_are_those_of_the_panel_of_the_upright_image(orientation, index):
    image = Blob(key="a", data=wide(["red", "blue"], 32, orientation), panel=Panel(index=index, count=2))
    seen = np.asarray(open_upright(image))
    assert seen.shape == (32, 64, 3)
    assert (seen == [[255, 0, 0], [0, 0, 255]][index]).all()
    assert upright_size(image) == (64, 32)


@pytest.mark.parametrize("orientation", [None, ROTATED])
def test_a_scan_takes_the_size_from_the_header_and_decodes_nothing(orientation, monkeypatch):
    image = Blob(key="a", data=wide(["red", "blue", "lime"], 32, orientation), panel=Panel(index=1, count=3))
    monkeypatch.setattr(Image.Image, "crop", None)
    [facts] = read_all([(image, None)], decode=False)
    assert (facts.width, facts.height, facts.error, facts.decoded) == (64, 32, None, False)


def test_each_panel_of_a_file_and_the_file_itself_have_a_hash_of_their_own():
    data = wide(["red", "red"])
    images = [
        Blob(key="a", data=data, panel=panel)
        for panel in (None, Panel(index=0, count=2), Panel(index=1, count=2), Panel(index=0, count=1))
    ]
    hashes = [facts.content_hash for facts in read_all([(image, None) for image in images], decode=False)]
    assert len(set(hashes)) == 4
    again = Blob(key="elsewhere", data=data, panel=Panel(index=0, count=2))
    assert read_all([(again, None)], decode=False)[0].content_hash == hashes[1]


def test_another_panel_is_noticed_even_under_the_same_place(tmp_path):
    left = Blob(key="a", data=wide(["red", "blue"]), panel=Panel(index=0, count=2), captions=("x",))

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Vague(Blob):
        @property
        def place(self):
            return "shelf: a"

    hashes = []
    for panel in (Panel(index=0, count=2), Panel(index=1, count=2)):
        image = Vague(key="a", data=left.data, panel=panel, captions=("x",))
        [sample] = prepare(tmp_path, rows(target_set(tmp_path), [image])).samples
        hashes.append(sample.target.record.content_hash)
    assert hashes[0] != hashes[1]


def test_an_image_with_fewer_columns_than_panels_is_unreadable(tmp_path):
    image = Blob(key="a", data=wide(["red"]), panel=Panel(index=0, count=100), captions=("x",))
    with pytest.raises(DataError, match="an image 64 pixels wide has no 100 panels"):
        prepare(tmp_path, rows(target_set(tmp_path), [image]))


def test_two_panels_of_a_row_are_a_strict_pair(tmp_path):
    prepared = prepare(
        tmp_path,
        rows(target_set(tmp_path, references=["references"]), halves()),
        rows(reference_set(tmp_path), halves(index=1)),
    )
    for sample in prepared.samples:
        [reference] = sample.choices[0].references
        assert reference.geometry == sample.target.geometry
        assert reference.record.key == sample.target.record.key
        colours = [np.asarray(load_placed(placed)).reshape(-1, 3).mean(axis=0) for placed in (sample.target, reference)]
        assert colours[0].tolist() == [255, 0, 0]
        assert colours[1].tolist() == [0, 0, 255]
    assert prepare(tmp_path, rows(target_set(tmp_path), halves())).hashed == 0


def test_rows_that_a_filter_of_the_target_set_leaves_out_leave_their_references_unused_without_a_word(tmp_path):
    target = rows(target_set(tmp_path, references=["references"]), halves()[:1], left_out={"filter": ["001"]})
    prepared = prepare(tmp_path, target, rows(reference_set(tmp_path), halves(index=1)))
    assert prepared.left_out["edits"] == {"filter": 1}
    assert prepared.notes == ("dataset 'edits': 1 images are left out by filter",)


def test_rows_that_a_filter_of_the_reference_set_leaves_out_are_no_missing_references(tmp_path):
    references = rows(reference_set(tmp_path), halves(index=1)[:1], left_out={"filter": ["001"]})
    prepared = prepare(tmp_path, rows(target_set(tmp_path, references=["references"]), halves()), references)
    assert [sample.target.record.key for sample in prepared.samples] == ["000"]
    assert prepared.left_out["edits"] == {"limit or filter of the reference": 1}
    assert (
        "dataset 'edits': 1 images are left out because 'references' leaves out their reference (filter)"
        in prepared.notes
    )


def test_a_filter_that_keeps_nothing_is_an_error_that_counts(tmp_path):
    nothing = rows(target_set(tmp_path), left_out={"filter": ["000", "001"], "split": []})
    with pytest.raises(DataError, match="all 2 images of data source 'rows' are left out: filter 2\n") as caught:
        prepare(tmp_path, nothing)
    assert "hint: " in str(caught.value)
