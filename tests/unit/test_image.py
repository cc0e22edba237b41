import io
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from data_plans import new_image
from PIL import Image, ImageCms

from difftrain import ConditioningGenerator, DataError, Geometry, ImageRecord, LocalImage, PluginError
from difftrain.data.files.pixels import load_placed, make_image, open_upright, to_pixels, upright_size
from difftrain.data.scanning.file_facts import read_all
from difftrain.types import PlacedImage, Recipe

TURNED = [(1, (30, 20)), (3, (30, 20)), (6, (20, 30)), (8, (20, 30))]


def with_orientation(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    new_image(path, (30, 20), exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize(("orientation", "size"), TURNED)
def test_orientation_is_applied_to_pixels_and_header_alike(tmp_path, suffix, orientation, size):
    path = with_orientation(tmp_path / f"a.{suffix}", orientation)
    assert upright_size(LocalImage.at(path)) == open_upright(LocalImage.at(path)).size == size


def test_orientation_turns_the_right_way(tmp_path):
    image = Image.new("RGB", (30, 20))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    assert open_upright(LocalImage.at(tmp_path / "a.png")).getpixel((19, 0)) == (255, 255, 255)


def test_orientation_behind_the_pixels_of_a_png_is_seen(tmp_path):
    data = with_orientation(tmp_path / "a.png", 6).read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    tail = data.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(data[:start] + data[end:tail] + data[start:end] + data[tail:])
    assert (
        upright_size(LocalImage.at(tmp_path / "b.png"))
        == open_upright(LocalImage.at(tmp_path / "b.png")).size
        == (20, 30)
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_shown_on_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0)).convert("LA" if mode == "LA" else "RGBA")
    if mode == "P":
        image = image.quantize(4)
    image.save(tmp_path / "a.png")
    assert open_upright(LocalImage.at(tmp_path / "a.png")).getpixel((1, 1)) == (255, 255, 255)


def test_half_transparency_is_blended(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert open_upright(LocalImage.at(tmp_path / "a.png")).getpixel((1, 1)) == (127, 127, 127)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = open_upright(LocalImage.at(tmp_path / "a.png"))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = open_upright(LocalImage.at(tmp_path / "a.jpg")).getpixel((4, 4))
    assert red > 200
    assert green < 60
    assert blue < 60


def test_embedded_profile_is_converted_to_srgb(tmp_path):
    # sRGB with the primaries of red and blue exchanged: the same numbers mean the colour with those exchanged.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = srgb.replace(b"rXYZ", b"temp").replace(b"bXYZ", b"rXYZ").replace(b"temp", b"bXYZ")
    Image.new("RGB", (4, 4), (120, 60, 200)).save(tmp_path / "a.png", icc_profile=exchanged)
    np.testing.assert_allclose(open_upright(LocalImage.at(tmp_path / "a.png")).getpixel((1, 1)), (200, 60, 120), atol=2)


def test_broken_profile_is_ignored(tmp_path):
    Image.new("RGB", (4, 4), (120, 60, 200)).save(tmp_path / "a.png", icc_profile=b"not a profile")
    assert open_upright(LocalImage.at(tmp_path / "a.png")).getpixel((1, 1)) == (120, 60, 200)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0"])
def test_broken_file_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
        open_upright(LocalImage.at(tmp_path / "a.jpg"))
    with pytest.raises(DataError, match=r"a\.jpg"):
        upright_size(LocalImage.at(tmp_path / "a.jpg"))


def test_truncated_file_is_an_error_not_a_grey_area(tmp_path):
    path = new_image(tmp_path / "a.jpg", (200, 200))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="truncated"):
        open_upright(LocalImage.at(path))


def test_placed_image_is_resized_once_then_cropped(tmp_path):
    path = new_image(tmp_path / "a.png", (90, 60))
    record = ImageRecord(dataset_id="d", key="a", image=LocalImage.at(path), width=90, height=60, content_hash="0")
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
    with pytest.raises(PluginError, match="'halving' made an image of 48x32 from one of 96x64"):
        make_image(LocalImage.at(new_image(tmp_path / "a.png")), recipe, "00")


def test_sixteen_bit_tiff_colours_do_not_crash(tmp_path):
    buffer = io.BytesIO()
    Image.new("I;16", (4, 4), 65535).save(buffer, "TIFF")
    (tmp_path / "a.tif").write_bytes(buffer.getvalue())
    assert open_upright(LocalImage.at(tmp_path / "a.tif")).getpixel((0, 0)) == (255, 255, 255)


def test_corrupt_exif_prints_no_warning(tmp_path):
    path = with_orientation(tmp_path / "a.jpg", 1)
    data = path.read_bytes()
    start = data.index(b"Exif\0\0") + 6
    path.write_bytes(data[: start + 8] + b"\xff" + data[start + 9 :])  # announces more entries than there are
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert open_upright(LocalImage.at(path)).size == upright_size(LocalImage.at(path)) == (30, 20)
        [facts] = read_all([(LocalImage.at(path), None)], decode=True)
    assert facts.error is None
    assert [str(warning.message) for warning in caught] == []


def test_a_photograph_of_200_megapixels_loads_in_silence(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (16_000, 12_500), 200).save(path, compress_level=1)
    program = (
        "import sys; from difftrain import LocalImage; from difftrain.data.files.pixels import open_upright, "
        "upright_size\nimage = LocalImage(key='a.png', file=sys.argv[1]); print(upright_size(image), "
        "open_upright(image).size)"
    )
    ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert ended.stdout == "(16000, 12500) (16000, 12500)\n"
    assert ended.stderr == ""


@pytest.mark.parametrize("read", [open_upright, upright_size])
def test_an_image_that_would_fill_the_memory_is_named_with_its_size(tmp_path, read):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + bytes(13))
    with pytest.raises(DataError, match=r"bomb\.png: .*60000x60000 pixels, more than the 1000 megapixels"):
        read(LocalImage.at(tmp_path / "bomb.png"))


BROKEN = {
    "exif": lambda: saved("JPEG", exif=b"Exif\0\0" + b"\xff" * 40),
    "profile cut short": lambda: saved("PNG", icc_profile=SRGB[: len(SRGB) // 2]),
    "palette with transparency": lambda: saved("PNG", small().quantize(16), transparency=b"\x00\x80\xff"),
    "tiff pixels": lambda: spoilt(saved("TIFF", compression="tiff_deflate")),
    "tiff jpeg": lambda: spoilt(saved("TIFF", compression="jpeg")),
    "avif": lambda: spoilt(saved("AVIF")),
    "avif without pixels": lambda: saved("AVIF").replace(b"iloc", b"ilac"),
    "gif": lambda: saved("GIF")[:-200],
    "second frame": lambda: spoilt(saved("GIF", save_all=True, append_images=[small().rotate(90)]), place=0.75),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def small():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8))


def saved(kind, image=None, **options):
    stream = io.BytesIO()
    (image or small()).save(stream, format=kind, **options)
    return stream.getvalue()


def spoilt(data, place=0.5):
    at = int(len(data) * place)
    return data[:at] + bytes(byte ^ 0x5A for byte in data[at : at + 60]) + data[at + 60 :]


def test_broken_images_end_in_our_words_alone(tmp_path):
    for name, data in BROKEN.items():
        (tmp_path / f"{name}.jpg").write_bytes(data())
    program = (
        "import sys; from pathlib import Path; from difftrain import DataError, LocalImage\n"
        "from difftrain.data.scanning.file_facts import read_all\n"
        "from difftrain.data.files.pixels import open_upright\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    image = LocalImage.at(path)\n"
        "    read_all([(image, None)], decode=False); read_all([(image, None)], decode=True)\n"
        "    try: open_upright(image)\n"
        "    except DataError as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.returncode == 0
    assert "tiff pixels.jpg: cannot be read as an image" in ended.stdout


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "JPEG2000", "TIFF", "TGA", "PPM", "QOI"])
def test_whatever_is_broken_is_reported_as_an_unreadable_image(tmp_path, kind):
    data = saved(kind, exif=Image.Exif()) if kind in ("JPEG", "PNG", "WEBP", "AVIF") else saved(kind)
    path = tmp_path / "a.png"
    draws = random.Random(7)
    told = []
    for _ in range(60):
        changed = bytearray(data[: draws.choice((len(data), draws.randrange(len(data))))] or data)
        for _ in range(draws.choice((1, 4, 30))):
            changed[draws.randrange(min(len(changed), draws.choice((60, 300, 10**6))))] = draws.randrange(256)
        path.write_bytes(changed)
        (facts,) = read_all([(LocalImage.at(path), None)], decode=True)
        told.append(facts.error)
        if facts.error is None:
            assert (facts.width, facts.height) == open_upright(LocalImage.at(path)).size
        else:
            with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read as an image")):
                open_upright(LocalImage.at(path))
    assert any(told), "some of these bytes are no image"
