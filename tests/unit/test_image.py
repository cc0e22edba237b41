import io
import random
import warnings

import numpy as np
import pytest
from data_plans import picture
from PIL import Image, ImageCms

from difftrain import ConditioningGenerator, DataError, Geometry, ImageRecord, PluginError
from difftrain.data.file_facts import read_all
from difftrain.data.image import load_placed, make_picture, open_upright, to_pixels, upright_size
from difftrain.types import PlacedImage, Recipe

TURNED = [(1, (30, 20)), (3, (30, 20)), (6, (20, 30)), (8, (20, 30))]


def with_orientation(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(path, (30, 20), exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize(("orientation", "size"), TURNED)
def test_orientation_is_applied_to_pixels_and_header_alike(tmp_path, suffix, orientation, size):
    path = with_orientation(tmp_path / f"a.{suffix}", orientation)
    assert upright_size(path) == open_upright(path).size == size


def test_orientation_turns_the_right_way(tmp_path):
    image = Image.new("RGB", (30, 20))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    assert open_upright(tmp_path / "a.png").getpixel((19, 0)) == (255, 255, 255)


def test_orientation_behind_the_pixels_of_a_png_is_seen(tmp_path):
    data = with_orientation(tmp_path / "a.png", 6).read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    tail = data.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(data[:start] + data[end:tail] + data[start:end] + data[tail:])
    assert upright_size(tmp_path / "b.png") == open_upright(tmp_path / "b.png").size == (20, 30)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_shown_on_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0)).convert("LA" if mode == "LA" else "RGBA")
    if mode == "P":
        image = image.quantize(4)
    image.save(tmp_path / "a.png")
    assert open_upright(tmp_path / "a.png").getpixel((1, 1)) == (255, 255, 255)


def test_half_transparency_is_blended(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert open_upright(tmp_path / "a.png").getpixel((1, 1)) == (127, 127, 127)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = open_upright(tmp_path / "a.png")
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = open_upright(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 200
    assert green < 60
    assert blue < 60


def test_embedded_profile_is_converted_to_srgb(tmp_path):
    # sRGB with the primaries of red and blue exchanged: the same numbers mean the colour with those exchanged.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = srgb.replace(b"rXYZ", b"temp").replace(b"bXYZ", b"rXYZ").replace(b"temp", b"bXYZ")
    Image.new("RGB", (4, 4), (120, 60, 200)).save(tmp_path / "a.png", icc_profile=exchanged)
    np.testing.assert_allclose(open_upright(tmp_path / "a.png").getpixel((1, 1)), (200, 60, 120), atol=2)


def test_broken_profile_is_ignored(tmp_path):
    Image.new("RGB", (4, 4), (120, 60, 200)).save(tmp_path / "a.png", icc_profile=b"not a profile")
    assert open_upright(tmp_path / "a.png").getpixel((1, 1)) == (120, 60, 200)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0"])
def test_broken_file_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read as a picture"):
        open_upright(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg"):
        upright_size(tmp_path / "a.jpg")


def test_truncated_file_is_an_error_not_a_grey_area(tmp_path):
    path = picture(tmp_path / "a.jpg", (200, 200))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="truncated"):
        open_upright(path)


def test_placed_picture_is_resized_once_then_cropped(tmp_path):
    path = picture(tmp_path / "a.png", (90, 60))
    record = ImageRecord(dataset_id="d", key="a", path=path, width=90, height=60, content_hash="0")
    geometry = Geometry(resize=(48, 32), crop=(8, 0), bucket=(32, 32))
    expected = Image.open(path).resize((48, 32), Image.Resampling.LANCZOS).crop((8, 0, 40, 32))
    assert load_placed(PlacedImage(record=record, geometry=geometry)).tobytes() == expected.tobytes()


def test_pixels_span_minus_one_to_one():
    image = Image.new("RGB", (3, 2), (0, 255, 0))
    pixels = to_pixels(image)
    assert pixels.shape == (3, 2, 3)
    assert pixels.dtype == np.float32
    assert (pixels[0] == -1).all()
    assert (pixels[1] == 1).all()


def test_generator_that_changes_the_size_is_named(tmp_path):
    class Halving(ConditioningGenerator):
        name = "halving"

        def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
            return image.reduce(2)

    recipe = Recipe(generator=Halving(), seed=0)
    with pytest.raises(PluginError, match="'halving' made a picture of 48x32 from one of 96x64"):
        make_picture(picture(tmp_path / "a.png"), recipe, "00")


def test_sixteen_bit_tiff_colours_do_not_crash(tmp_path):
    buffer = io.BytesIO()
    Image.new("I;16", (4, 4), 65535).save(buffer, "TIFF")
    (tmp_path / "a.tif").write_bytes(buffer.getvalue())
    assert open_upright(tmp_path / "a.tif").getpixel((0, 0)) == (255, 255, 255)


def test_corrupt_exif_prints_no_warning(tmp_path):
    path = with_orientation(tmp_path / "a.jpg", 1)
    data = path.read_bytes()
    start = data.index(b"Exif\0\0") + 6
    path.write_bytes(data[: start + 8] + b"\xff" + data[start + 9 :])  # announces more entries than there are
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert open_upright(path).size == upright_size(path) == (30, 20)
        [facts] = read_all([str(path)], decode=True)
    assert facts.error is None
    assert [str(warning.message) for warning in caught] == []
