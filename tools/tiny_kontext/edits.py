"""The edits and images to train on: instruction edits in varied words, and images with their descriptions.

Deblurring, denoising and JPEG restoration are left out on purpose: the demo teaches them.
"""

from __future__ import annotations

import random

from image_edits import image_edit
from recipes import OVERLAYS, SCENE, Edit
from scene_edits import describe, random_scene, scene_edit
from wording import say

SCENE_SHARE = 0.30
"""Share of edits that require knowing what is in a procedural scene."""
SCENE_FOR_ANY = 0.12
"""Share of the other edits that are made on a scene rather than on a photograph."""


def edit(rng: random.Random) -> Edit:
    """Return a random pair: reference, instruction, target."""
    if rng.random() < SCENE_SHARE:
        return scene_edit(rng)
    made = image_edit(rng)
    if rng.random() < SCENE_FOR_ANY:
        background, _, placed = random_scene(rng, rng.choice((1, 2)))
        if made.kind not in OVERLAYS:
            before = [item.numbers for item in placed]
            made.shapes = (before, before)
        made.photo, made.backgrounds = SCENE, (background, background)
    return made


def photograph(rng: random.Random, subjects: tuple[str, ...]) -> Edit:
    """Return a photograph and its subject, without a reference."""
    index = rng.randrange(len(subjects))
    words = ("a photograph of {s}", "a photo of {s}", "{s}", "a picture of {s}")
    return Edit(kind="photograph", caption=say(rng, words, s=subjects[index]), photo=index)


def text_to_image(rng: random.Random, subjects: tuple[str, ...]) -> Edit:
    """Return a random image with its description, or the target of an edit whose reference is dropped."""
    chance = rng.random()
    if chance < 0.5:
        return describe(rng)
    return photograph(rng, subjects) if chance < 0.85 else edit(rng)
