import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difftrain import ConfigError, GeometryRules, assign_bucket, cover_bucket
from difftrain.data.buckets import USUAL_ASPECTS, SizeLimits, broken_limit, focused

SIZES = st.tuples(st.integers(1, 9000), st.integers(1, 9000))
ALIGNMENTS = st.sampled_from([8, 16, 64])


def rules(**changes):
    return GeometryRules(**{"resolution": 1024, "resolution_type": "pixel_area", "alignment": 64, **changes})


@st.composite
def any_rules(draw):
    kind, resolution = draw(
        st.sampled_from([("pixel", 512.0), ("pixel_area", 1024.0), ("pixel_area", 700.0), ("area", 0.5), ("area", 1.0)])
    )
    crop = draw(st.booleans())
    return rules(
        resolution=resolution,
        resolution_type=kind,
        alignment=draw(ALIGNMENTS),
        crop=crop,
        crop_aspect=draw(st.sampled_from(["square", "preserve"])),
        crop_style="center",
        maximum_image_size=draw(st.sampled_from([None, resolution * 2])),
        target_downsample_size=draw(st.sampled_from([None, resolution * 1.5])),
    )


def flipped(pair):
    return pair[1], pair[0]


def test_full_hd_at_one_megapixel_matches_the_specified_numbers():
    # Worked out with another trainer's rules: 1365x768, 10 pixels cut on the left.
    geometry = assign_bucket((1920, 1080), rules())
    assert (geometry.resize, geometry.crop, geometry.bucket) == ((1365, 768), (10, 0), (1344, 768))


@given(SIZES, any_rules())
def test_transposed_image_gets_transposed_numbers(size, rules):
    geometry, transposed = assign_bucket(size, rules), assign_bucket(flipped(size), rules)
    assert transposed.resize == flipped(geometry.resize)
    assert transposed.crop == flipped(geometry.crop)
    assert transposed.bucket == flipped(geometry.bucket)


@given(SIZES, any_rules())
def test_bucket_edges_are_positive_multiples_of_the_alignment(size, rules):
    bucket = assign_bucket(size, rules).bucket
    assert all(edge > 0 and edge % rules.alignment == 0 for edge in bucket)


@given(SIZES, any_rules())
def test_resize_covers_the_bucket_and_keeps_the_aspect_within_a_pixel(size, rules):
    geometry = assign_bucket(size, rules)
    (width, height), (resized_width, resized_height) = size, geometry.resize
    assert resized_width >= geometry.bucket[0]
    assert resized_height >= geometry.bucket[1]
    off_height = abs(resized_width * height / width - resized_height)
    off_width = abs(resized_height * width / height - resized_width)
    assert min(off_height, off_width) <= 0.5 + 1e-6


@given(SIZES, st.integers(0, 1000))
def test_without_crop_the_overhang_is_cut_at_the_centre_whatever_the_style(size, seed):
    geometry = assign_bucket(size, rules(crop_style="random"), draw=random.Random(seed))
    for axis in (0, 1):
        left = geometry.crop[axis]
        right = geometry.resize[axis] - geometry.bucket[axis] - left
        assert right - left in (0, 1)


@pytest.mark.parametrize(
    ("kind", "resolution", "bucket"),
    [("pixel", 512, (768, 512)), ("area", 1.0, (1216, 832)), ("pixel_area", 1024, (1280, 832))],
)
def test_resolution_types(kind, resolution, bucket):
    # 1500x1000: shorter edge 512; 1e6 pixels = 1224.7 x 816.5; 1024^2 pixels = 1254.1 x 836.1; to multiples of 64.
    geometry = assign_bucket((1500, 1000), rules(resolution=resolution, resolution_type=kind))
    assert geometry.bucket == bucket


def test_square_crop_of_a_landscape():
    geometry = assign_bucket((2000, 1000), rules(crop=True, crop_aspect="square", resolution=512))
    assert (geometry.resize, geometry.crop, geometry.bucket) == ((1024, 512), (256, 0), (512, 512))


def test_corner_crop_takes_the_lower_right():
    geometry = assign_bucket((2000, 1000), rules(crop=True, crop_aspect="square", crop_style="corner", resolution=512))
    assert geometry.crop == (512, 0)


def test_random_crop_depends_on_the_draw_alone():
    square = rules(crop=True, crop_aspect="square", crop_style="random", resolution=512)
    crops = [assign_bucket((2000, 1000), square, draw=random.Random(seed)).crop for seed in (1, 1, 2)]
    assert crops[0] == crops[1] != crops[2]


def test_closest_crop_aspect_is_taken():
    closest = rules(crop=True, crop_aspect="closest", crop_aspect_buckets=(0.5, 1.0, 2.0), resolution=512)
    assert assign_bucket((1900, 1000), closest).bucket == (704, 384)


def test_closest_without_aspects_says_what_is_missing():
    with pytest.raises(ConfigError, match="crop_aspect_buckets"):
        assign_bucket((10, 10), rules(crop=True, crop_aspect="closest"))


def test_large_image_is_only_reduced_before_a_crop():
    limited = rules(
        crop=True, crop_aspect="square", resolution=512, maximum_image_size=1536, target_downsample_size=1024
    )
    assert assign_bucket((2048, 2048), limited).resize == (1024, 1024)
    assert assign_bucket((1500, 1500), limited).resize == (512, 512)


def test_downsample_size_changes_nothing_without_crop():
    limited = rules(maximum_image_size=1536, target_downsample_size=1280)
    assert assign_bucket((4000, 3000), limited) == assign_bucket((4000, 3000), rules())


def test_cover_bucket_keeps_the_aspect():
    geometry = cover_bucket((640, 427), (512, 512))
    assert (geometry.resize, geometry.crop, geometry.bucket) == ((767, 512), (127, 0), (512, 512))


@pytest.mark.parametrize(
    ("size", "broken"),
    [
        ((1024, 1024), None),
        ((1024, 1023), "minimum_image_size"),
        ((900, 2000), "minimum_aspect_ratio"),
        ((2000, 900), "maximum_aspect_ratio"),
    ],
)
def test_limits_are_named(size, broken):
    limits = SizeLimits(
        resolution_type="pixel_area", minimum_image_size=1024, minimum_aspect_ratio=0.5, maximum_aspect_ratio=2.0
    )
    assert broken_limit(size, limits) == broken


def test_minimum_in_shorter_edge_and_megapixels():
    by_edge = SizeLimits(resolution_type="pixel", minimum_image_size=512)
    by_area = SizeLimits(resolution_type="area", minimum_image_size=2.0)
    assert broken_limit((4000, 500), by_edge) == "minimum_image_size"
    assert broken_limit((4000, 500), by_area) is None


# drawn aspects, and images that would be enlarged


def test_a_random_aspect_is_one_of_those_named_and_follows_the_draw():
    asked = rules(crop=True, crop_aspect="random", crop_aspect_buckets=(0.5, 1.0, 2.0))
    found = {assign_bucket((300, 200), asked, draw=random.Random(seed)).bucket for seed in range(40)}
    assert len(found) == 3
    assert assign_bucket((300, 200), asked, draw=random.Random(7)) == assign_bucket(
        (300, 200), asked, draw=random.Random(7)
    )
    assert asked.draws


def test_a_random_aspect_without_any_named_is_a_usual_one():
    asked = rules(crop=True, crop_aspect="random")
    found = {assign_bucket((300, 300), asked, draw=random.Random(seed)).bucket for seed in range(200)}
    assert len(found) == len(USUAL_ASPECTS)


@pytest.mark.parametrize(
    ("size", "threshold", "broken"),
    [((100, 100), 0.0, True), ((100, 100), 0.3, False), ((128, 128), 0.0, False), ((64, 64), 0.9, True),
     ((64, 64), 1.0, False), ((300, 400), 0.0, False)],
)  # fmt: skip
def test_images_that_would_be_enlarged_too_much_are_left_out(size, threshold, broken):
    asked = rules(resolution=128, alignment=32)
    limits = SizeLimits(resolution_type="pixel_area", max_upscale=threshold, rules=asked)
    assert broken_limit(size, limits) == ("max_upscale_threshold" if broken else None)
    random_aspect = rules(resolution=128, alignment=32, crop=True, crop_aspect="random", crop_aspect_buckets=(1.0,))
    limits = SizeLimits(resolution_type="pixel_area", max_upscale=threshold, rules=random_aspect)
    assert broken_limit(size, limits) == ("max_upscale_threshold" if broken else None)


POINTS = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(SIZES, any_rules(), POINTS)
def test_a_crop_has_its_focus_as_near_to_its_centre_as_the_edges_allow(size, asked, point):
    cropped = replace(asked, crop=True, crop_style="focus")
    geometry = assign_bucket(size, focused(cropped, point))
    plain = assign_bucket(size, replace(cropped, crop_style="center"))
    assert (geometry.resize, geometry.bucket) == (plain.resize, plain.bucket)
    for axis in (0, 1):
        start, room = geometry.crop[axis], geometry.resize[axis] - geometry.bucket[axis]
        assert 0 <= start <= room
        wanted = point[axis] * geometry.resize[axis]
        distances = {other: abs(other + geometry.bucket[axis] / 2 - wanted) for other in (start - 1, start, start + 1)}
        inside = [distance for other, distance in distances.items() if 0 <= other <= room]
        assert distances[start] <= min(inside) + 1e-6


@given(SIZES, any_rules(), POINTS)
def test_transposed_image_and_focus_get_transposed_numbers(size, asked, point):
    cropped = replace(asked, crop=True, crop_style="focus")
    geometry = assign_bucket(size, focused(cropped, point))
    transposed = assign_bucket(flipped(size), focused(cropped, flipped(point)))
    assert transposed.crop == flipped(geometry.crop)


@given(SIZES, any_rules(), st.sampled_from([None, (0.5, 0.5)]))
def test_without_a_focus_or_with_the_middle_the_crop_is_centred(size, asked, point):
    cropped = replace(asked, crop=True, crop_style="focus")
    assert assign_bucket(size, focused(cropped, point)) == assign_bucket(size, replace(cropped, crop_style="center"))


@pytest.mark.parametrize("style", ["center", "corner"])
def test_a_focus_changes_no_other_style(style):
    asked = rules(crop=True, crop_aspect="square", crop_style=style)
    assert focused(asked, (0.1, 0.9)) is asked
