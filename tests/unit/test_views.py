"""Views: the encoded part of a reference, mapped back to its source image."""

import hashlib

import numpy as np
import pytest
from data_plans import new_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from difftrain.data.buckets import assign_bucket
from difftrain.data.caching.text_views import TextViews, source_box
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.pixels import load_placed
from difftrain.errors import PluginError
from difftrain.types import Geometry, GeometryRules, ImageRecord, PlacedImage

SIZES = st.tuples(st.integers(1, 9000), st.integers(1, 9000))


@st.composite
def geometries(draw):
    """Return a source size and a geometry for it."""
    source = draw(SIZES)
    crop = draw(st.booleans())
    aspect = draw(st.sampled_from(["square", "preserve"]))
    rules = GeometryRules(resolution=512, resolution_type="pixel_area", alignment=16, crop=crop, crop_aspect=aspect)
    return source, assign_bucket(source, rules)


def transposed(geometry):
    return Geometry(**{name: getattr(geometry, name)[::-1] for name in ("resize", "crop", "bucket")})


@given(geometries())
def test_the_box_lies_in_the_source_image(case):
    source, geometry = case
    left, top, right, bottom = source_box(source, geometry)
    assert 0 <= left < right <= source[0]
    assert 0 <= top < bottom <= source[1]


@given(geometries())
def test_the_box_is_the_crop_in_other_units(case):
    source, geometry = case
    box = source_box(source, geometry)
    for place, edge in enumerate(geometry.box):
        assert box[place] * geometry.resize[place % 2] == pytest.approx(edge * source[place % 2])


@given(geometries())
def test_the_transposed_image_has_the_transposed_box(case):
    source, geometry = case
    left, top, right, bottom = source_box(source, geometry)
    assert source_box(source[::-1], transposed(geometry)) == (top, left, bottom, right)


@given(SIZES, SIZES)
def test_an_image_that_is_not_cut_is_seen_whole(source, resize):
    assert source_box(source, Geometry(resize=resize, crop=(0, 0), bucket=resize)) == (0, 0, *source)


@pytest.fixture
def placed(tmp_path):
    """Return an image of 96x64 pixels whose middle 48x48 are encoded as 24x24."""
    path = new_image(tmp_path / "a.png", (96, 64), seed=3)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    record = ImageRecord(dataset_id="d", key="a", image=LocalImage.at(path), width=96, height=64, content_hash=content)
    return PlacedImage(record=record, geometry=Geometry(resize=(48, 32), crop=(12, 4), bucket=(24, 24)))


def test_a_view_of_another_size_is_resized_once_from_the_source(placed):
    seen = TextViews(lambda size: (18, 20)).load(placed)
    with Image.open(placed.record.image.path) as image:
        expected = image.resize((18, 20), Image.Resampling.LANCZOS, box=(24, 8, 72, 56))
        twice = load_placed(placed).resize((18, 20), Image.Resampling.LANCZOS)
    assert seen.tobytes() == expected.tobytes()
    assert seen.tobytes() != twice.tobytes()


def test_a_view_shows_what_is_encoded(placed):
    seen = TextViews(lambda size: (48, 48)).load(placed)
    small = np.asarray(seen.resize((24, 24), Image.Resampling.BOX), dtype=float)
    assert np.abs(small - np.asarray(load_placed(placed), dtype=float)).mean() < 2


def test_a_view_of_the_encoded_size_has_the_pixels_and_the_key_of_what_is_encoded(placed):
    views = TextViews(lambda size: size)
    assert views.load(placed).tobytes() == load_placed(placed).tobytes()
    assert views.identity(placed) == f"{placed.record.content_hash}{placed.geometry.identity}"


def test_every_view_has_an_identity_of_its_own(placed):
    sizes = [(24, 24), (24, 20), (20, 24), (48, 48)]
    assert len({TextViews(lambda _, size=size: size).identity(placed) for size in sizes}) == 4
    moved = PlacedImage(record=placed.record, geometry=Geometry(resize=(48, 32), crop=(11, 4), bucket=(24, 24)))
    views = TextViews(lambda size: (20, 20))
    assert views.identity(placed) != views.identity(moved)


def test_equal_views_have_one_identity_whatever_size_is_encoded(placed):
    larger = PlacedImage(record=placed.record, geometry=Geometry(resize=(96, 64), crop=(24, 8), bucket=(48, 48)))
    views = TextViews(lambda size: (20, 20))
    assert views.identity(placed) == views.identity(larger)
    assert views.load(placed).tobytes() == views.load(larger).tobytes()


@pytest.mark.parametrize("wrong", [None, (0, 8), (8.0, 8.0), (8, 8, 3), 384])
def test_a_view_that_is_no_size_is_the_plugins_error(placed, wrong):
    with pytest.raises(PluginError, match=r"text_view\(\).*24x24.*\(width, height\)"):
        TextViews(lambda size: wrong).identity(placed)
