"""Pairs with one known fault each, cut from the photographs of the tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw

PHOTOS = Path(__file__).parent / "photos"
SIZE = (480, 320)


@cache
def _photo(name):
    image = Image.open(PHOTOS / f"{name}.jpg").convert("RGB")
    scale = max(640 / image.width, 480 / image.height)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def view(name="cat", *, right=0.0, down=0.0, zoom=1.0, size=SIZE):
    """Return a part of a photograph whose content lies ``right`` and ``down`` pixels away, enlarged by ``zoom``."""
    image = _photo(name)
    width, height = size[0] / zoom, size[1] / zoom
    across, along = image.width / 2 - right / zoom, image.height / 2 - down / zoom
    box = across - width / 2, along - height / 2, across + width / 2, along + height / 2
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


def edited(image, box=(150, 90, 280, 220)):
    """Return the image with a disc in it: an edit of a part."""
    image = image.copy()
    ImageDraw.Draw(image).ellipse(box, fill=(210, 30, 60))
    return image


def write_pair(root: Path, name: str, reference, target, caption="make it red", *, reference_suffix="png"):
    for folder, image, suffix in (("references", reference, reference_suffix), ("edits", target, "png")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        image.save(root / folder / f"{name}.{suffix}", quality=90)
    (root / "edits" / f"{name}.txt").write_text(caption)


def faulty_pairs(root: Path) -> None:
    """Write one pair for each finding, named after it, and one without any."""
    write_pair(root, "good", view("coffee"), edited(view("coffee")))
    write_pair(root, "shifted", view("cat"), view("cat", right=6, down=-4))
    write_pair(root, "zoomed", view("astronaut"), view("astronaut", zoom=1.05))
    write_pair(root, "near_equal", view("rocket"), view("rocket"), reference_suffix="jpg")
    write_pair(root, "no_edit", view("launchpad"), view("launchpad"), reference_suffix="webp")
    view("launchpad").save(root / "references" / "no_edit.webp", lossless=True)
    write_pair(root, "same_pixels", view("cat"), view("coffee").convert("L").convert("RGB"))
    edited(view("coffee")).save(root / "edits" / "same_pixels.png", compress_level=1)
    write_pair(root, "tiny_reference", view("galaxies", size=(96, 64)), edited(view("galaxies")))
    write_pair(root, "caption_describes", view("retina"), edited(view("retina")), "a photo of an eye with a disc")
    write_pair(root, "caption_empty", view("retina", right=40), edited(view("retina", right=40)), "")
    write_pair(root, "caption_too_long", view("cat", right=60), edited(view("cat", right=60)), "add a disc, " * 300)


def write_config(root: Path) -> tuple[str, ...]:
    """Write the dataset list of the two folders; return the flags of a run with it."""
    common = {"type": "local", "resolution": 256, "resolution_type": "pixel_area"}
    listed = [
        {"id": "edits", "instance_data_dir": "edits", "conditioning_data": "references", **common},
        {"id": "references", "instance_data_dir": "references", "conditioning_type": "reference_strict",
         "caption_strategy": None, **common},
    ]  # fmt: skip
    (root / "datasets.json").write_text(json.dumps(listed))
    return (
        "--model", "flux", "--flavour", "kontext", "--pretrained_model_name_or_path", "tiny", "--output_dir", "out",
        "--data_backend_config", "datasets.json", "--max_train_steps", "2", "--cache_dir", "cache",
        "--lr_warmup_steps", "0",
    )  # fmt: skip
