import io
import random

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from difftrain.data.files.pixels import UNREADABLE, header_facts, open_with_pillow
from difftrain.data.files.plain_headers import plain_size


def image(mode="RGB", size=(96, 64)):
    noise = random.Random(1).randbytes(8 * 6 * 3)
    return Image.frombytes("RGB", (8, 6), noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def saved(kind, mode="RGB", **options):
    stream = io.BytesIO()
    image(mode).save(stream, kind, **options)
    return stream.getvalue()


def texts(**pairs):
    info = PngImagePlugin.PngInfo()
    for name, text in pairs.items():
        info.add_text(name, text)
    return info


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PLAIN = {
    "jpeg": saved("JPEG"),
    "jpeg, progressive": saved("JPEG", progressive=True),
    "jpeg, grey": saved("JPEG", "L"),
    "jpeg, profile": saved("JPEG", icc_profile=PROFILE),
    "jpeg, comment": saved("JPEG", comment=b"a comment"),
    "png": saved("PNG"),
    "png, alpha": saved("PNG", "RGBA"),
    "png, grey": saved("PNG", "L"),
    "png, resolution": saved("PNG", dpi=(72, 72)),
    "png, text": saved("PNG", pnginfo=texts(parameters="a cat, steps: 20")),
    "webp": saved("WEBP"),
}
LEFT_TO_PILLOW = {
    "jpeg, turned": saved("JPEG", exif=turned()),
    "jpeg, four inks": saved("JPEG", "CMYK"),
    "jpeg, xmp": saved("JPEG", xmp=b"<x/>"),
    "png, turned": saved("PNG", exif=turned()),
    "png, animated": saved("PNG", save_all=True, append_images=[image().rotate(90)]),
    "webp, turned": saved("WEBP", exif=turned()),
    "webp, animated": saved("WEBP", save_all=True, append_images=[image().rotate(90)]),
    "gif": saved("GIF"),
    "bmp": saved("BMP"),
    "two frames": saved("MPO", save_all=True, append_images=[image().rotate(90)]),
    "nothing": b"",
}
ALL = {**PLAIN, **LEFT_TO_PILLOW}


@pytest.mark.parametrize("name", PLAIN)
def test_ordinary_files_are_read_without_pillow(name):
    assert plain_size(PLAIN[name]) == (96, 64) == header_facts(io.BytesIO(PLAIN[name]))[0]


@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_files_that_may_be_turned_or_have_frames_are_left_to_pillow(name):
    assert plain_size(LEFT_TO_PILLOW[name]) is None


def test_an_orientation_behind_the_pixels_is_left_to_pillow():
    data, exif = PLAIN["png"], saved("PNG", exif=turned())
    start = exif.index(b"eXIf") - 4
    chunk = exif[start : start + 12 + int.from_bytes(exif[start : start + 4], "big")]
    moved = data[:-12] + chunk + data[-12:]
    assert plain_size(moved) is None
    assert header_facts(io.BytesIO(moved))[0] == (64, 96)


@pytest.mark.parametrize("name", ALL)
def test_damaged_files_have_a_size_only_if_pillow_gives_the_same(name):
    draw = random.Random(name)
    data = ALL[name]
    for _ in range(400 if data else 0):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(min(len(data), 700))] = draw.choice((0, 1, 0x7F, 0xFF, draw.randrange(256)))
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(damaged)) :]
        size = plain_size(bytes(damaged))
        if size is not None:
            try:
                assert header_facts(io.BytesIO(damaged)) == (size, False)
            except UNREADABLE as error:
                pytest.fail(f"Pillow refuses it: {error!r}")


def test_damage_is_found_as_pillow_does():
    draw = random.Random(2)
    agreed = 0
    for data in PLAIN.values():
        for cut in draw.sample(range(len(data)), 20):
            if plain_size(data[:cut]) is not None:
                with open_with_pillow(io.BytesIO(data[:cut])) as opened:
                    assert opened.size == plain_size(data[:cut])
                agreed += 1
    assert agreed  # a JPEG cut behind its header
