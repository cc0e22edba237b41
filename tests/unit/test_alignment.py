"""Shift and zoom between two pictures: found where they are known, and never made of an edit."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from difftrain.doctor.alignment import ALIGNED, estimate
from pictures_of_pairs import edited, view

pytest.importorskip("cv2", reason="needs opencv: pip install 'difftrain[doctor]'")
PHOTOS = ("cat", "coffee", "astronaut", "galaxies", "launchpad", "retina", "rocket")


def grey(image):
    return np.asarray(image.convert("L"), np.float32)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize(("right", "down"), [(2, 0), (-3, 5), (20, 7)])
def test_a_shift_is_found_to_a_fifth_of_a_pixel(photo, right, down):
    found = estimate(grey(view(photo)), grey(view(photo, right=right, down=down)))
    assert found == pytest.approx((right, down, 1), abs=0.2)
    assert found.zoom == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize(("zoom", "within"), [(1.02, 0.005), (0.95, 0.01), (1.1, 0.02)])
def test_a_zoom_is_found(photo, zoom, within):
    found = estimate(grey(view(photo)), grey(view(photo, zoom=zoom)))
    assert found.zoom == pytest.approx(zoom, abs=within)
    assert max(abs(found.right), abs(found.down)) < 1


def test_shift_and_zoom_together_are_found():
    found = estimate(grey(view("coffee")), grey(view("coffee", right=5, down=3, zoom=0.95)))
    assert found == pytest.approx((5, 3, 0.95), abs=0.15)


def test_a_shift_is_found_beside_an_edit_that_also_takes_the_colour():
    target = edited(view("coffee", right=3, down=-2)).convert("L").convert("RGB")
    assert estimate(grey(view("coffee")), grey(target)) == pytest.approx((3, -2, 1), abs=0.2)


def moved_part(image):
    image = image.copy()
    image.paste(image.crop((60, 60, 220, 220)), (90, 80))
    return image


EDITS = {
    "disc": edited,
    "large disc": lambda image: edited(image, (40, 20, 440, 300)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "negative": ImageOps.invert,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(4)),
    "mirrored": ImageOps.mirror,
    "moved part": moved_part,
    "plain": lambda image: Image.new("RGB", image.size, (200, 200, 200)),
    "another photo": lambda image: view("retina"),
}


@pytest.mark.parametrize("photo", [name for name in PHOTOS if name != "retina"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_no_misalignment(photo, edit):
    reference = view(photo)
    assert estimate(grey(reference), grey(EDITS[edit](reference))) == ALIGNED
