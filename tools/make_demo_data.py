"""Recreate the demo's photographs: ``python tools/make_demo_data.py --packages FOLDER``.

They are cut from photographs: those of Debian's lomiri-wallpapers-16.04 and one of scikit-image to train on,
three others of scikit-image to hold out (the built-in model has not seen these either). ``FOLDER`` keeps the
package (`apt-get download`, `dpkg`); install scikit-image only for this script (``pip install
scikit-image==0.26.0``). The results are committed, so this is needed only to change them. The author and licence
of each photograph are in core/difftrain/demo/SOURCES.md.
"""

from __future__ import annotations

import argparse
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFilter

DEMO = Path(__file__).parent.parent / "core" / "difftrain" / "demo"
PACKAGE = "lomiri-wallpapers-16.04"
EDGE = 128
"""Edge of a window, in pixels."""
BLUR = 3.0
"""Radius of the demo's blur, in pixels: ``blur_radius`` in its dataset list."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph, and the number of its windows to ship."""

    source: str
    """File in the Debian package, or name in scikit-image."""
    windows: int
    views: tuple[int, int] = (150, 300)
    """Range of the shorter edge to which the photograph is reduced before a window is cut."""


TRAINING = {
    "autumn": Photo(source="aitzgorri_by_Aitzol_Berasategi.jpg", windows=6),
    "brushes": Photo(source="Picture_1A_by_freespace.jpg", windows=6),
    "dandelions": Photo(source="seeding_by_Clements_Engelhardt.jpg", windows=6),
    "dogs": Photo(source="friends_by_Aitzol_Berasategi.jpg", windows=6),
    "drum": Photo(source="Wine_by_Jakkub_Mede.jpg", windows=6),
    "mountains": Photo(source="picosdeeuropa_by_Aitzol_Berasategi.jpg", windows=6),
    "rocket": Photo(source="rocket.jpg", windows=6),
    "stream": Photo(source="life_by_Aitzol_Berasategi.jpg", windows=6),
    "sunset": Photo(source="sunset_by_Aitzol_Berasategi.jpg", windows=6),
}
HELD_OUT = {
    "astronaut": Photo(source="astronaut.png", windows=3, views=(192, 192)),
    "cat": Photo(source="chelsea.png", windows=3, views=(192, 192)),
    "coffee": Photo(source="coffee.png", windows=2, views=(192, 192)),
}


def windows(image: Image.Image, photo: Photo, rng: random.Random) -> Iterator[Image.Image]:
    """Yield square windows at random places and scales, ``EDGE`` pixels each."""
    for _ in range(photo.windows):
        edge = EDGE * min(image.size) / rng.uniform(*photo.views)
        left, top = rng.uniform(0, image.width - edge), rng.uniform(0, image.height - edge)
        box = (left, top, left + edge, top + edge)
        yield image.resize((EDGE, EDGE), Image.Resampling.LANCZOS, box=box)


def write(photos: dict[str, Photo], sources: list[Path], folder: Path) -> None:
    """Write every photograph's windows as ``NAME-K.jpg``, in a fresh folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for name, photo in photos.items():
        path = next(source / photo.source for source in sources if (source / photo.source).is_file())
        with Image.open(path) as source:
            image = source.convert("RGB")
        for number, window in enumerate(windows(image, photo, random.Random(name)), start=1):
            window.save(folder / f"{name}-{number}.jpg", quality=92, subsampling="4:4:4", optimize=True)


def write_blurred(photos: Path, folder: Path) -> None:
    """Write a blurred copy of every photograph under its name, as the demo's pairs have it, to be edited."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for path in sorted(photos.glob("*.jpg")):
        with Image.open(path) as image:
            image.convert("RGB").filter(ImageFilter.GaussianBlur(BLUR)).save(folder / f"{path.stem}.png", optimize=True)


def unpacked(packages: Path) -> Path:
    """Return the folder of the package's images; download and unpack it if necessary."""
    folder = packages / "unpacked" / PACKAGE
    if not folder.is_dir():
        packages.mkdir(parents=True, exist_ok=True)
        if not list(packages.glob(f"{PACKAGE}_*.deb")):
            subprocess.run(["apt-get", "download", PACKAGE], cwd=packages, check=True)
        subprocess.run(["dpkg", "-x", str(next(packages.glob(f"{PACKAGE}_*.deb"))), str(folder)], check=True)
    return folder / "usr" / "share" / "backgrounds"


def main() -> None:
    parser = argparse.ArgumentParser(description="recreate the demo's photographs")
    parser.add_argument("--packages", type=Path, required=True, help="folder for the Debian package")
    import skimage.data

    sources = [unpacked(parser.parse_args().packages), Path(skimage.data.__file__).parent]
    write(TRAINING, sources, DEMO / "photos")
    write(HELD_OUT, sources, DEMO / "held_out")
    write_blurred(DEMO / "held_out", DEMO / "to_edit")


if __name__ == "__main__":
    main()
