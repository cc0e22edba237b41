"""Small synthetic photographs, alone or as pairs of folders."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from difftrain.types import Size

COLOURS = ("red", "green", "blue", "yellow", "white", "black")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFolders:
    """The folders that :func:`make_dataset` wrote; both images of a pair have the same file name."""

    edits: Path
    """Targets, with captions beside them."""
    references: Path

    def entries(self, *, reference_sets: int = 1, **keys: object) -> list[dict[str, object]]:
        """Entries of a dataset list: the edits with their captions, then the references, paired by file name.

        Args:
            reference_sets: How many sets show the references, named ``references``, ``references-2``, ...; with 0 the
                edits stand alone.
            keys: Keys of every entry, such as ``resolution=64``.
        """
        names = ["references", *(f"references-{number}" for number in range(2, reference_sets + 1))][:reference_sets]
        edits = {"id": "edits", "instance_data_dir": str(self.edits), "caption_strategy": "textfile", **keys}
        if names:
            edits["conditioning_data"] = names
        references = {"instance_data_dir": str(self.references), "caption_strategy": None, **keys}
        return [edits, *({"id": name, **references, "conditioning_type": "reference_strict"} for name in names)]


def make_dataset(
    folder: Path,
    count: int = 4,
    size: Size = (96, 64),
    *,
    captions: bool = True,
    extension: str = ".png",
    seed: int = 0,
) -> PairFolders:
    """Write images with a coloured disc to ``folder/edits``, and blurred copies to ``folder/references``.

    Args:
        folder: Created if it does not exist.
        count: Number of pairs, all different.
        size: (width, height) of every image.
        captions: Write an instruction beside every edit, as NAME.txt.
        extension: Extension of the images, for a format that Pillow writes.
        seed: Equal seeds give equal pixels.
    """
    folders = PairFolders(edits=folder / "edits", references=folder / "references")
    for path in (folders.edits, folders.references):
        path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = draw_image(size, seed=seed * 1000 + number)
        image.save(folders.edits / f"{number:03}{extension}")
        image.filter(ImageFilter.GaussianBlur(2)).save(folders.references / f"{number:03}{extension}")
        if captions:
            (folders.edits / f"{number:03}.txt").write_text(f"sharpen image {number}\n", encoding="utf-8")
    return folders


def draw_image(size: Size, seed: int) -> Image.Image:
    """Return smooth colours with one disc; RGB."""
    rng = random.Random(seed)
    small = Image.frombytes("RGB", (4, 4), rng.randbytes(48))
    image = small.resize(size, Image.Resampling.BICUBIC)
    radius = min(size) // 4
    left, top = (rng.randint(0, edge - 2 * radius) for edge in size)
    disc = (left, top, left + 2 * radius, top + 2 * radius)
    ImageDraw.Draw(image).ellipse(disc, fill=rng.choice(COLOURS))
    return image
