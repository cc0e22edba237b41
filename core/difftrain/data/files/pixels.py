"""Images from the bytes of image files: upright, sRGB, 8 bit, no alpha; then one resize and one crop.

Everything that looks at pixels uses :func:`open_upright`, so training, generators and validation see
the same image. Start with :func:`load_placed`.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from difftrain.data.files.image_formats import readable_formats
from difftrain.data.files.plain_headers import ORIENTATION_TEXTS, png_chunks, png_may_turn
from difftrain.errors import DataError, PluginError, printable
from difftrain.machine.open_file import open_image
from difftrain.types import Box, ImageRecord, PlacedImage, Recipe, Size, SourceImage

if TYPE_CHECKING:
    import numpy as np

_WHITE = (255, 255, 255)

MOST_PIXELS = 1_000_000_000
"""Limit for one image. Cameras and panoramas reach a few hundred million; beyond that, a file of a few bytes could
be made to fill the memory."""
# Pillow's own limit is a tenth of that, and its complaints give no size; see open_with_pillow.
Image.MAX_IMAGE_PIXELS = None

UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, LookupError, ArithmeticError, TypeError, AttributeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""Exceptions that Pillow raises for broken files, besides the documented ones."""

_ORIENTATION = 0x0112
_SWAPS_AXES = (5, 6, 7, 8)
_ORIENTATION_SOURCES = frozenset(keyword.decode() for keyword in ORIENTATION_TEXTS)
"""Places where Pillow looks for an orientation; most files have none of these."""


def open_upright(source: SourceImage) -> Image.Image:
    """Return an image, or the panel of it that the source means, as people see it.

    Applies the EXIF orientation, converts colours from the embedded profile to sRGB, shows transparent parts
    on white and scales 16 bits to 8.

    Returns:
        A loaded RGB image.

    Raises:
        DataError: If it cannot be read or decoded; names its place.
    """
    try:
        with open_image(source) as stream, open_with_pillow(stream) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            seen = _to_srgb(_to_eight_bits(upright))
            return seen if source.panel is None else seen.crop(source.panel.box_in(seen.size))
    except UNREADABLE as error:
        raise DataError(f"{printable(source.place)}: cannot be read as an image ({describe(error)})") from error


def upright_size(source: SourceImage) -> Size:
    """Return (width, height) after EXIF rotation, from the header alone.

    Raises:
        DataError: If it cannot be read; names its place.
    """
    try:
        with open_image(source) as stream:
            size = header_facts(stream)[0]
            return size if source.panel is None else source.panel.size_in(size)
    except UNREADABLE as error:
        raise DataError(f"{printable(source.place)}: cannot be read as an image ({describe(error)})") from error


def header_facts(stream: BinaryIO) -> tuple[Size, bool]:
    """Return :func:`upright_size` of an open file, and whether it has frames beyond the one that is used.

    Raises one of :data:`UNREADABLE`.
    """
    with open_with_pillow(stream) as image:
        width, height = image.size
        # the second image of an MPO file is for the other eye, or a depth map
        is_animated = getattr(image, "is_animated", False) and image.format != "MPO"
        if image.format == "TIFF":  # Pillow rotates these itself
            return (width, height), is_animated
        turned = _exif(image, stream).get(_ORIENTATION) in _SWAPS_AXES
    return (height, width) if turned else (width, height), is_animated


@contextmanager
def open_with_pillow(stream: BinaryIO) -> Iterator[Image.Image]:
    """Open an image in one of the supported formats, without warnings; its pixels are not read yet.

    Broken metadata loses at most an orientation or a profile; Pillow's raw warning would name no file and no fix.
    Warning filters belong to the process: where threads overlap, this one filter may stay, and nothing else.

    Raises one of :data:`UNREADABLE`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with Image.open(stream, formats=readable_formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} pixels, more than the {MOST_PIXELS // 10**6} megapixels that an "
                    "image may have; reduce it"
                )
            yield image


def load_placed(placed: PlacedImage) -> Image.Image:
    """Return the image to encode: opened or made, resized once (LANCZOS), cropped.

    Raises:
        DataError: If it cannot be read; names its place.
    """
    geometry = placed.geometry
    image = open_or_make(placed.record)
    if image.size != geometry.resize:
        image = image.resize(geometry.resize, Image.Resampling.LANCZOS)
    return image.crop(geometry.box)


def load_part(record: ImageRecord, box: Box, size: Size) -> Image.Image:
    """Return a part of an image in another size: opened or made, resized once (LANCZOS).

    Args:
        box: The part, in pixels of the upright image.
        size: Size of the result.

    Raises:
        DataError: If it cannot be read; names its place.
    """
    return open_or_make(record).resize(size, Image.Resampling.LANCZOS, box=box)


def open_or_make(record: ImageRecord) -> Image.Image:
    """Return the whole upright image, opened or made.

    Raises:
        DataError: If it cannot be read; names its place.
    """
    if record.recipe is None:
        return open_upright(record.image)
    return make_image(record.image, record.recipe, record.content_hash)


def to_pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return [3, H, W], float32, -1 to 1; computed as in diffusers' image processor, so that the bits are equal."""
    import numpy as np

    planes = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(planes / np.float32(255) * np.float32(2) - np.float32(1))


def make_image(source: SourceImage, recipe: Recipe, made_hash: str) -> Image.Image:
    """Make a reference image; equal hashes give equal bytes in every process.

    Args:
        source: The target image.
        recipe: The generator and its options.
        made_hash: Hex sha256 of the recipe's identity, which seeds the randomness.

    Raises:
        DataError: If the source cannot be read.
        PluginError: If the generator fails, or returns no image or one of another size.
    """
    original = open_upright(source)
    made = _generate(recipe, original.copy(), random.Random(int(made_hash, 16)), source)
    if made.size != original.size:
        raise PluginError(
            f"generator {type(recipe.generator).name!r} made an image of {made.width}x{made.height} from one of "
            f"{original.width}x{original.height}\nhint: generate() must return the size that it was given"
        )
    return made if made.mode == "RGB" else made.convert("RGB")


def _generate(recipe: Recipe, original: Image.Image, rng: random.Random, source: SourceImage) -> Image.Image:
    """Call the generator and turn its failures into plugin errors."""
    name = type(recipe.generator).name
    try:
        made: object = recipe.generator.generate(original, rng)
    except Exception as error:  # third-party plugin code may raise anything
        raise PluginError(
            f"generator {name!r} failed on {printable(source.place)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Image.Image):
        raise PluginError(
            f"generator {name!r} returned {type(made).__name__}, not an image, for {source.place}\n"
            "hint: generate() must return a PIL image"
        )
    return made


def describe(error: BaseException) -> str:
    """Return a decoder's complaint without the address of its buffer."""
    if isinstance(error, MemoryError):
        return "not enough memory for it"
    if isinstance(error, UnidentifiedImageError):
        return "not an image file, or an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _exif(image: Image.Image, stream: BinaryIO) -> Image.Exif:
    """Return EXIF data without decoding pixels.

    Pillow decodes a whole PNG to look for EXIF data after the pixels, though hardly any file has them there; so it
    may do so only if a chunk there could hold an orientation.
    """
    if image.format == "PNG" and _may_turn_behind_pixels(stream):
        return image.getexif()
    return Image.Image.getexif(image) if _ORIENTATION_SOURCES & image.info.keys() else Image.Exif()


def _may_turn_behind_pixels(stream: BinaryIO) -> bool:
    position = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(position)
    has_pixels = False
    for kind, start, _ in png_chunks(data):
        has_pixels |= kind == b"IDAT"
        if has_pixels and png_may_turn(kind, data, start):
            return True
    return False


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey images of 16 or 32 bits, which Pillow would clip."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    full = (1.0 if values.max(initial=0.0) <= 1.0 else 255.0) if image.mode == "F" else 65535.0
    scaled = np.rint(np.clip(values / full, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(scaled)


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    colours = _apply_profile(image, profile) if profile else image.convert("RGB")
    if alpha is None:
        return colours
    canvas = Image.new("RGB", colours.size, _WHITE)
    canvas.paste(colours, mask=alpha)
    return canvas


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert to sRGB; ignore a profile that is broken or meant for another mode, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    assert converted is not None
    return converted
