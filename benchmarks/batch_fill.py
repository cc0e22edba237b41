"""How full batches are with loose references of mixed sizes: ``python benchmarks/batch_fill.py``.

A batch holds samples of one shape: of target and references. Makes sets of pairs whose two images have independent
aspects, plans an epoch as a run does, and prints the share of places in batches that hold a sample. Reads no image.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path

from difftrain import GeometryRules, Pairing, Size, assign_bucket
from difftrain.data.files.local_image import LocalImage
from difftrain.data.streaming.epoch import plan_epoch
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.types import ImageRecord, PlacedImage, ReferenceChoice, Sample
from difftrain_flux_kontext.pairing import ReferenceLoose, even_aspects

CAMERAS = {3 / 2: 22, 4 / 3: 20, 1.0: 15, 16 / 9: 8, 2 / 3: 8, 3 / 4: 7, 9 / 16: 5, 4 / 5: 5, 5 / 4: 3, None: 7}
"""Aspects of photos by weight; None is cut by hand, to any aspect."""
FREE = {None: 1}
"""Screenshots and cut-outs."""
RULES = GeometryRules(resolution=1024, resolution_type="pixel_area", alignment=64)
PAIRINGS: dict[str, Pairing] = {
    "own": ReferenceLoose(),
    "kontext": ReferenceLoose(reference_resolution="kontext"),
    "reference_shapes 7": ReferenceLoose(reference_shapes=7),
    "reference_shapes 5": ReferenceLoose(reference_shapes=5),
    "reference_shapes 3": ReferenceLoose(reference_shapes=3),
    "same": ReferenceLoose(reference_resolution="same"),
}


def any_size(draw: random.Random, aspects: dict[float | None, int]) -> Size:
    """Return a size of 0.8 to 12 megapixels."""
    aspect = draw.choices(list(aspects), list(aspects.values()))[0] or math.exp(draw.gauss(0.0, 0.35))
    area = draw.uniform(0.8e6, 12e6)
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def record(name: str, size: Size) -> ImageRecord:
    image = LocalImage.at(Path(name))
    return ImageRecord(dataset_id="set", key=name, image=image, width=size[0], height=size[1], content_hash=name)


def samples_of(count: int, draw_size: Callable[[], Size], pairing: Pairing, rules: GeometryRules) -> list[Sample]:
    samples = []
    for number in range(count):
        target, reference = record(f"{number}", draw_size()), record(f"{number}-r", draw_size())
        geometry = assign_bucket(target.size, rules)
        own = pairing.place(target=target, target_geometry=geometry, reference=reference, own_rules=RULES)
        placed = PlacedImage(record=reference, geometry=own)
        choices = (ReferenceChoice(references=(placed,)),)
        target_image = PlacedImage(record=target, geometry=geometry)
        samples.append(Sample(dataset_id="set", target=target_image, captions=("",), choices=choices))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--batch", type=int, default=4)
    asked = parser.parse_args()
    five = GeometryRules(
        resolution=1024, resolution_type="pixel_area", alignment=64, crop=True, crop_aspect="closest",
        crop_aspect_buckets=even_aspects(5),
    )  # fmt: skip
    print(f"| pairs | references | full at batch {asked.batch} | with 5 target aspects too |\n|---|---|---|---|")
    for label, aspects in (("photos", CAMERAS), ("any aspect", FREE)):
        for count in asked.pairs:
            for name, pairing in PAIRINGS.items():
                shares = []
                for rules in (RULES, five):
                    draw = random.Random(0)
                    samples = samples_of(count, lambda draw=draw, of=aspects: any_size(draw, of), pairing, rules)
                    epoch = EpochRules(seed=0, batch_size=asked.batch)
                    shares.append(f"{100 * plan_epoch(samples, 0, epoch).fill_share:.0f} %")
                print(f"| {count} {label} | {name} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
