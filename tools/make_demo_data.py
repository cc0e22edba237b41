"""Make the demo's photographs and pairs again: ``python tools/make_demo_data.py``.

The sources are pictures inside the wheel of scikit-image, which is not a dependency of difftrain: install
it for this script only (``pip install scikit-image==0.26.0``). The results are committed, so this is needed
only to change them. Who made each picture, and its licence, is in core/difftrain/demo/photos/SOURCES.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

DEMO = Path(__file__).parent.parent / "core" / "difftrain" / "demo"
SHORTER_EDGE = 192


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One shipped photograph: which part of which file of scikit-image."""

    source: str
    box: tuple[int, int, int, int]
    """(left, top, right, bottom) in the source."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One pair: what is done to a photograph, and how a user would ask for it, one wording a line."""

    change: Callable[[Image.Image], Image.Image]
    instructions: tuple[str, ...]


PHOTOS = {
    "astronaut": Photo(source="astronaut.png", box=(30, 0, 371, 512)),
    "cat": Photo(source="chelsea.png", box=(0, 0, 400, 300)),
    "coffee": Photo(source="coffee.png", box=(0, 0, 600, 400)),
    "galaxies": Photo(source="hubble_deep_field.jpg", box=(0, 0, 1000, 872)),
    "launchpad": Photo(source="rocket.jpg", box=(0, 67, 640, 427)),
    "retina": Photo(source="retina.jpg", box=(0, 0, 1411, 1411)),
    "rocket": Photo(source="rocket.jpg", box=(172, 27, 472, 427)),
}


def sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(picture), black="#1e0f05", mid="#8c6a46", white="#fff4dc")


EDITS = {
    "astronaut": Edit(
        change=lambda picture: ImageOps.posterize(picture, 2),
        instructions=("turn it into a poster with a few flat colours",),
    ),
    "cat": Edit(
        change=lambda picture: ImageOps.grayscale(picture).convert("RGB"),
        instructions=("make it black and white", "remove all colour"),
    ),
    "coffee": Edit(change=sepia, instructions=("give it a sepia tone, like an old photograph",)),
    "galaxies": Edit(change=ImageOps.invert, instructions=("invert the colours", "make it a negative")),
    "rocket": Edit(change=ImageOps.mirror, instructions=("mirror the picture from left to right",)),
}


def load(photo: Photo, folder: Path) -> Image.Image:
    """The photograph, cut and reduced so that its shorter edge is ``SHORTER_EDGE``."""
    with Image.open(folder / photo.source) as source:
        picture = source.convert("RGB").crop(photo.box)
    scale = SHORTER_EDGE / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="JPEG", quality=92, subsampling="4:2:0", optimize=True)


def write_photos(source: Path) -> None:
    folder = DEMO / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    for name, photo in PHOTOS.items():
        save(load(photo, source), folder / f"{name}.jpg")


def write_pairs() -> None:
    """Edits are made from the saved photographs, so that a reference is the very file that is in ``photos``."""
    edits, references = DEMO / "pairs" / "edits", DEMO / "pairs" / "references"
    for folder in (edits, references):
        folder.mkdir(parents=True, exist_ok=True)
    for name, edit in EDITS.items():
        photo = DEMO / "photos" / f"{name}.jpg"
        (references / photo.name).write_bytes(photo.read_bytes())
        with Image.open(photo) as picture:
            save(edit.change(picture.convert("RGB")), edits / photo.name)
        (edits / f"{name}.txt").write_text("\n".join(edit.instructions) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="make the demo's photographs and pairs again")
    parser.add_argument("--source", type=Path, help="folder of scikit-image's pictures; default: the installed package")
    source = parser.parse_args().source
    if source is None:
        import skimage.data

        source = Path(skimage.data.__file__).parent
    write_photos(source)
    write_pairs()


if __name__ == "__main__":
    main()
