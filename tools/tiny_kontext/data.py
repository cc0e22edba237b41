"""Photographs: fetched from Debian packages, reduced to JPEG, cut into a pool of crops.

    python data.py --packages DEBS --output STATE/photos

`DEBS` keeps the downloaded packages (`apt-get download`, about 390 MB; `dpkg` unpacks them). The output
contains what training needs: a few MB of JPEG files and `photos.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sources import PACKAGES, PHOTOGRAPHS, STAMP_LICENCE, STAMP_PACKAGE, STAMP_SUBJECTS, STAMPS, licences

SHORTER_EDGE = 640
"""Shorter edge of a reduced photograph, in pixels."""
COMPOSITE = 320
"""Edge of a square image with a cut-out pasted onto a photograph."""
CROP = 176
"""Edge of the crops in the pool; training takes smaller windows from them."""
QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class CropPool:
    """Crops of every photograph, at many scales."""

    pixels: np.ndarray
    """[photographs, crops of each, CROP, CROP, 3], uint8."""
    subjects: tuple[str, ...]
    """One per photograph."""


def fetch(folder: Path) -> dict[str, Path]:
    """Return unpacked packages by name; download missing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = {}
    for package in PACKAGES:
        target = folder / "unpacked" / package
        if not target.is_dir():
            if not list(folder.glob(f"{package}_*.deb")):
                subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
            subprocess.run(["dpkg", "-x", str(next(folder.glob(f"{package}_*.deb"))), str(target)], check=True)
        unpacked[package] = target
    return unpacked


def prepare(packages: Path, output: Path, seed: int = 0) -> None:
    """Write the reduced images and `photos.json`."""
    Image.MAX_IMAGE_PIXELS = None  # some wallpapers have more than Pillow trusts
    unpacked = fetch(packages)
    output.mkdir(parents=True, exist_ok=True)
    entries, images = [], []
    for index, photograph in enumerate(PHOTOGRAPHS):
        with Image.open(unpacked[photograph.package] / photograph.path) as source:
            image = _reduce(source.convert("RGB"))
        name = f"photo{index:03d}.jpg"
        image.save(output / name, quality=QUALITY)
        images.append(image)
        entries.append({"file": name, "subject": photograph.subject, "package": photograph.package,
                        "path": photograph.path, "licence": photograph.licence})  # fmt: skip
    rng = random.Random(seed)
    stamps = sorted((unpacked[STAMP_PACKAGE] / STAMPS).rglob("*.png"))
    for index, (prefix, subject) in enumerate(STAMP_SUBJECTS.items()):
        stamp = next(path for path in stamps if path.name.startswith(prefix) and "cartoon" not in path.parts)
        name = f"stamp{index:03d}.jpg"
        _paste(stamp, rng.choice(images), rng).save(output / name, quality=QUALITY)
        entries.append({"file": name, "subject": subject, "package": STAMP_PACKAGE,
                        "path": str(stamp.relative_to(unpacked[STAMP_PACKAGE])), "licence": STAMP_LICENCE})  # fmt: skip
    (output / "photos.json").write_text(json.dumps({"photographs": entries, "licences": licences()}, indent=1))


def _reduce(image: Image.Image) -> Image.Image:
    scale = min(1.0, SHORTER_EDGE / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _paste(stamp: Path, ground: Image.Image, rng: random.Random) -> Image.Image:
    """Return the cut-out on a random window of a photograph."""
    edge = rng.randint(COMPOSITE, min(ground.size))
    left, top = rng.randint(0, ground.width - edge), rng.randint(0, ground.height - edge)
    canvas = ground.crop((left, top, left + edge, top + edge)).resize((COMPOSITE, COMPOSITE), Image.Resampling.LANCZOS)
    with Image.open(stamp) as source:
        thing = source.convert("RGBA")
    thing.thumbnail((rng.randint(220, COMPOSITE), rng.randint(220, COMPOSITE)), Image.Resampling.LANCZOS)
    place = (rng.randint(0, COMPOSITE - thing.width), rng.randint(0, COMPOSITE - thing.height))
    canvas.paste(thing, place, thing)
    return canvas


def cut(path: Path, count: int, seed: int) -> np.ndarray:
    """Return random square crops of one image, [count, CROP, CROP, 3]; mostly large views, with the finest detail."""
    rng = random.Random(seed)
    with Image.open(path) as source:
        image = source.convert("RGB")
    shorter = min(image.size)
    crops = np.empty((count, CROP, CROP, 3), np.uint8)
    for index in range(count):
        edge = min(shorter, round(CROP * math.exp(math.sqrt(rng.random()) * math.log(shorter / CROP))))
        left, top = rng.randint(0, image.width - edge), rng.randint(0, image.height - edge)
        box = (left, top, left + edge, top + edge)
        crops[index] = np.asarray(image.resize((CROP, CROP), Image.Resampling.LANCZOS, box=box))
    return crops


def load_pool(folder: Path, crops_each: int, seed: int = 0, workers: int = 8) -> CropPool:
    """Cut every image of `photos.json` into crops; the same seed gives the same pool."""
    entries = json.loads((folder / "photos.json").read_text())["photographs"]
    paths = [folder / entry["file"] for entry in entries]
    with ProcessPoolExecutor(workers) as executor:
        cuts = list(executor.map(cut, paths, [crops_each] * len(paths), range(seed, seed + len(paths))))
    return CropPool(pixels=np.stack(cuts), subjects=tuple(entry["subject"] for entry in entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    prepare(arguments.packages, arguments.output)


if __name__ == "__main__":
    main()
