import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from difftrain import GeometryRules, ImageRecord, PairingError, assign_bucket
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.pixels import load_placed, upright_size
from difftrain.data.samples.matching import match
from difftrain.types import PlacedImage
from difftrain_flux_kontext.pairing import ReferenceLoose, ReferenceStrict, even_aspects, nearest_preferred_size

RULES = GeometryRules(resolution=128, resolution_type="pixel_area", alignment=32)


def record(key, size=(100, 100), suffix=".png", path=None):
    from pathlib import Path

    path = path or Path(key + suffix)
    return ImageRecord(
        dataset_id="d",
        key=key,
        image=LocalImage.at(path, path.name if path.is_absolute() else str(path)),
        width=size[0],
        height=size[1],
        content_hash="0",
    )


def place(pairing, target, reference, rules=RULES):
    geometry = assign_bucket(target.size, rules)
    return pairing.place(target=target, target_geometry=geometry, reference=reference, own_rules=rules)


def grid(size, alpha=False):
    """Return markers every 16 pixels, each with its own colour."""
    pixels = np.full((size[1], size[0], 4 if alpha else 3), 255, dtype=np.uint8)
    for row in range(0, size[1], 16):
        for column in range(0, size[0], 16):
            pixels[row : row + 6, column : column + 6, :3] = (row * 7 % 256, column * 5 % 256, (row + column) % 256)
            if alpha:
                pixels[row + 2 : row + 4, column : column + 6, 3] = 90
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "suffix", "orientation", "alpha"),
    [
        ((320, 180), "png", 1, False),
        ((180, 320), "png", 1, False),
        ((317, 211), "png", 1, False),
        ((401, 97), "png", 1, False),
        ((320, 180), "png", 6, False),
        ((317, 211), "png", 8, False),
        ((250, 199), "png", 1, True),
        ((250, 199), "webp", 5, True),
    ],
)
def test_pixels_of_a_strict_pair_stay_aligned(tmp_path, size, suffix, orientation, alpha):
    exif = Image.Exif()
    exif[0x0112] = orientation
    records = []
    for name in ("edit", "reference"):
        path = tmp_path / f"{name}.{suffix}"
        grid(size, alpha).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        records.append(record(name, upright_size(LocalImage.at(path)), path=path))
    target, reference = records
    placed = place(ReferenceStrict(), target, reference)
    images = [
        load_placed(PlacedImage(record=one, geometry=geometry))
        for one, geometry in ((target, assign_bucket(target.size, RULES)), (reference, placed))
    ]
    assert images[0].tobytes() == images[1].tobytes()


@given(st.tuples(st.integers(16, 5000), st.integers(16, 5000)))
def test_strict_copies_the_edit_geometry(size):
    target = record("a", size)
    assert place(ReferenceStrict(), target, record("a", size)) == assign_bucket(size, RULES)


def test_strict_reference_of_half_size_goes_to_the_edit_resize_in_one_step():
    target = record("a", (1920, 1080))
    assert place(ReferenceStrict(), target, record("a", (957, 540))) == assign_bucket((1920, 1080), RULES)


@pytest.mark.parametrize("size", [(1960, 1080), (1920, 1110), (1080, 1920)])
def test_strict_reference_of_another_aspect_is_refused_with_both_sizes(size):
    with pytest.raises(PairingError, match=rf"a\.png is {size[0]}x{size[1]}, but its target image is 1920x1080"):
        place(ReferenceStrict(), record("a", (1920, 1080)), record("a", size))


def test_loose_reference_keeps_its_own_size():
    placed = place(ReferenceLoose(), record("a", (1920, 1080)), record("a", (500, 900)))
    assert placed == assign_bucket((500, 900), RULES)


def test_loose_reference_same_follows_the_edit_bucket():
    placed = place(ReferenceLoose(reference_resolution="same"), record("a", (1920, 1080)), record("a", (500, 900)))
    assert placed.bucket == assign_bucket((1920, 1080), RULES).bucket


def test_loose_reference_on_a_preferred_size_is_resized_as_in_inference():
    placed = place(ReferenceLoose(reference_resolution="kontext"), record("a"), record("a", (640, 427)))
    assert placed.resize == placed.bucket == (1248, 832)


@pytest.mark.parametrize(("count", "found"), [(1, 1), (3, 3), (5, 3)])  # 128 px in steps of 32: 3:4 is as 9:16
def test_loose_references_may_be_cropped_to_a_few_shapes(count, found):
    sizes = [(100 * width, 100 * height) for width in range(4, 25) for height in range(4, 25)]
    placed = [place(ReferenceLoose(reference_shapes=count), record("a"), record("a", size)) for size in sizes]
    assert len({geometry.bucket for geometry in placed}) == found
    for size, geometry in zip(sizes, placed, strict=True):
        (left, top), (width, height) = geometry.crop, geometry.resize
        assert (left, top) == ((width - geometry.bucket[0]) // 2, (height - geometry.bucket[1]) // 2)
        assert abs(width * size[1] - height * size[0]) <= max(size)  # nothing is squashed


def test_five_aspects_are_the_usual_ones_and_transposed_ones_agree():
    assert even_aspects(5) == pytest.approx((9 / 16, 3 / 4, 1, 4 / 3, 16 / 9))
    assert even_aspects(1) == (1.0,)
    wide, tall = (
        place(ReferenceLoose(reference_shapes=5), record("a"), record("a", size)) for size in ((1900, 700), (700, 1900))
    )
    assert (wide.bucket, wide.resize) == (tall.bucket[::-1], tall.resize[::-1])


def test_few_shapes_are_for_own_sizes_only():
    with pytest.raises(ValueError, match="reference_shapes 3 needs reference_resolution = own"):
        ReferenceLoose(reference_shapes=3, reference_resolution="same")


@pytest.mark.parametrize(
    ("size", "preferred"),
    [((1000, 1000), (1024, 1024)), ((1920, 1080), (1392, 752)), ((640, 427), (1248, 832))],
)
def test_nearest_preferred_size_matches_the_pipeline(size, preferred):
    # Golden values: the selection in FluxKontextPipeline.__call__ of diffusers 0.42.
    assert nearest_preferred_size(size) == preferred


def test_names_with_a_common_beginning_are_not_confused():
    targets = [record("image1"), record("image10"), record("image")]
    references = [record("image10", suffix=".jpg"), record("image1", suffix=".jpg"), record("image", suffix=".jpg")]
    matching = match(targets, references)
    assert {key.rpartition(".")[0]: found.key for key, found in matching.found.items()} == {
        "image1": "image1",
        "image10": "image10",
        "image": "image",
    }


def test_same_name_in_another_folder_is_no_match():
    matching = match([record("x/a")], [record("y/a"), record("a")])
    assert [one.key for one in matching.missing] == ["x/a"]
    assert [one.key for one in matching.unused] == ["y/a", "a"]


def test_same_stem_is_matched_by_extension():
    targets = [record("a", suffix=".png"), record("a", suffix=".jpg")]
    references = [record("a", suffix=".JPG"), record("a", suffix=".png")]
    matching = match(targets, references)
    assert {key: found.image.key for key, found in matching.found.items()} == {
        "a.png": "a.png",
        "a.jpg": "a.JPG",
    }


def test_two_candidates_of_other_extensions_are_ambiguous():
    candidates = (record("a", suffix=".jpg"), record("a", suffix=".webp"))
    matching = match([record("a", suffix=".png")], list(candidates))
    assert matching.ambiguous == [(record("a", suffix=".png"), candidates)]


def test_second_target_of_a_stem_without_candidate_is_missing():
    matching = match([record("a", suffix=".png"), record("a", suffix=".jpg")], [record("a", suffix=".png")])
    assert [one.image.extension for one in matching.missing] == [".jpg"]


KEYS = st.sets(st.lists(st.text("ab1", min_size=1, max_size=2), min_size=1, max_size=2).map("/".join))


@given(KEYS, KEYS)
def test_every_record_is_found_missing_or_unused(targets, references):
    matching = match([record(key) for key in targets], [record(key) for key in references])
    assert {found.key for found in matching.found.values()} == targets & references
    assert {one.key for one in matching.missing} == targets - references
    assert {one.key for one in matching.unused} == references - targets
