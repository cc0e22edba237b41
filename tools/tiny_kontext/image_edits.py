"""Edits that work on any image, whatever it shows: colour, light, geometry, and shapes on top of it."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from recipes import TURNS, Edit
from scenes import COLOURS
from shape_numbers import PLACES, THINGS, painted, shape
from wording import say

LUMA = np.array([0.299, 0.587, 0.114])
SAME = np.eye(3)


def grey(rng: random.Random) -> Edit:
    words = ("make {p} grey", "turn {p} grey", "make {p} black and white", "black and white", "remove all colour",
             "turn {p} into a black and white picture", "convert {p} to greyscale",
             "take the colour out of {p}")  # fmt: skip
    return Edit(kind="grey", caption=say(rng, words), matrix=np.tile(LUMA, (3, 1)))


def negative(rng: random.Random) -> Edit:
    words = ("make a negative", "invert the colours", "turn {p} into a negative", "invert {p}", "show the negative",
             "negative of {p}", "invert all colours")  # fmt: skip
    return Edit(kind="negative", caption=say(rng, words), matrix=-SAME, bias=np.ones(3))


def mirror(rng: random.Random) -> Edit:
    words = ("mirror {p}", "flip {p} horizontally", "swap left and right", "flip {p} left to right", "mirror image")
    return Edit(kind="mirror", caption=say(rng, words), turn=TURNS.index("mirror"))


def flip(rng: random.Random) -> Edit:
    words = ("flip {p} vertically", "swap top and bottom", "flip {p} top to bottom", "mirror {p} vertically")
    return Edit(kind="flip", caption=say(rng, words), turn=TURNS.index("flip"))


def rotate(rng: random.Random) -> Edit:
    turn = rng.choice(("half", "left", "right"))
    words = {
        "half": ("turn {p} upside down", "rotate {p} by half a turn", "rotate {p} by 180 degrees"),
        "left": ("rotate {p} to the left", "turn {p} to the left", "rotate {p} left by 90 degrees"),
        "right": ("rotate {p} to the right", "turn {p} to the right", "rotate {p} right by 90 degrees"),
    }[turn]
    return Edit(kind=f"rotate_{turn}", caption=say(rng, words), turn=TURNS.index(turn))


def tint(rng: random.Random) -> Edit:
    name = rng.choice([name for name in COLOURS if name not in ("white", "black", "grey")])
    words = ("tint {p} {c}", "give {p} a {c} tint", "colour {p} {c}", "make everything {c}", "put {p} in {c} light",
             "a {c} tint", "make {p} all {c}")  # fmt: skip
    colour = np.array(COLOURS[name])
    colour = colour / max(LUMA @ colour, 0.25) * 0.62
    matrix = 0.8 * np.outer(colour, LUMA) + 0.2 * SAME
    return Edit(kind="tint", caption=say(rng, words, c=name), matrix=matrix, bias=0.12 * np.array(COLOURS[name]))


def sepia(rng: random.Random) -> Edit:
    words = ("make {p} sepia", "sepia", "make {p} look old", "give {p} a sepia tone", "an old brown photo")
    matrix = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]]) * 0.85
    return Edit(kind="sepia", caption=say(rng, words), matrix=matrix)


def light(rng: random.Random) -> Edit:
    if rng.random() < 0.5:
        words = ("make {p} brighter", "brighten {p}", "brighter", "more light", "add light to {p}", "lighten {p}")
        return Edit(kind="brighter", caption=say(rng, words), gamma=0.7, matrix=1.15 * SAME)
    words = ("make {p} darker", "darken {p}", "darker", "less light", "make {p} look like night", "dim {p}")
    return Edit(kind="darker", caption=say(rng, words), gamma=1.25, matrix=0.65 * SAME)


def contrast(rng: random.Random) -> Edit:
    if rng.random() < 0.5:
        words = ("more contrast", "raise the contrast", "increase the contrast", "give {p} more contrast")
        factor, kind = 1.6, "more_contrast"
    else:
        words = ("less contrast", "lower the contrast", "reduce the contrast", "give {p} less contrast", "fade {p}")
        factor, kind = 0.5, "less_contrast"
    return Edit(kind=kind, caption=say(rng, words), matrix=factor * SAME, bias=np.full(3, 0.5 * (1 - factor)))


def saturation(rng: random.Random) -> Edit:
    if rng.random() < 0.5:
        words = ("more colour", "make the colours stronger", "raise the saturation", "make {p} more colourful")
        factor, kind = 1.9, "more_colour"
    else:
        words = ("less colour", "make the colours weaker", "lower the saturation", "make {p} less colourful")
        factor, kind = 0.4, "less_colour"
    matrix = factor * SAME + (1 - factor) * np.tile(LUMA, (3, 1))
    return Edit(kind=kind, caption=say(rng, words), matrix=matrix)


def swap_colours(rng: random.Random) -> Edit:
    first, second = rng.sample(range(3), 2)
    names = ("red", "green", "blue")
    words = ("swap {a} and {b}", "exchange {a} and {b}", "swap the colours {a} and {b}")
    matrix = SAME.copy()
    matrix[[first, second]] = matrix[[second, first]]
    return Edit(kind="swap_colours", caption=say(rng, words, a=names[first], b=names[second]), matrix=matrix)


def warmth(rng: random.Random) -> Edit:
    if rng.random() < 0.5:
        words = ("make {p} warmer", "warmer colours", "warm light", "give {p} warmer colours")
        return Edit(kind="warmer", caption=say(rng, words), matrix=np.diag([1.15, 1.0, 0.65]))
    words = ("make {p} cooler", "cooler colours", "cold light", "give {p} cooler colours")
    return Edit(kind="cooler", caption=say(rng, words), matrix=np.diag([0.65, 0.95, 1.2]))


def keep(rng: random.Random) -> Edit:
    words = ("keep {p} as it is", "change nothing", "do nothing", "the same picture", "copy {p}", "leave {p} as it is")
    return Edit(kind="keep", caption=say(rng, words))


def frame(rng: random.Random) -> Edit:
    name = rng.choice(list(COLOURS))
    words = ("put a {c} frame around {p}", "add a {c} frame", "a {c} frame around {p}", "frame {p} in {c}",
             "add a {c} border")  # fmt: skip
    around = shape(rng, "frame", name, (0.0, 0.0), radius=rng.uniform(0.12, 0.2), turn=0.0)
    return Edit(kind="frame", caption=say(rng, words, c=name), shapes=([], [around]))


def add(rng: random.Random) -> Edit:
    thing, name, place = rng.choice(THINGS), rng.choice(list(COLOURS)), rng.choice(list(PLACES))
    words = ("add a {c} {t} {l}", "put a {c} {t} {l}", "draw a {c} {t} {l}", "place a {c} {t} {l}",
             "{l}, add a {c} {t}")  # fmt: skip
    added = shape(rng, thing, name, PLACES[place])
    return Edit(kind="add", caption=say(rng, words, c=name, t=thing, l=place), shapes=([], [added]))


def recolour(rng: random.Random) -> Edit:
    """Give a shape that is already on the image another colour."""
    thing, place = rng.choice(THINGS), rng.choice(list(PLACES))
    before, after = rng.sample(list(COLOURS), 2)
    words = ("make the {t} {d}", "change the {c} {t} to {d}", "recolour the {t} in {d}", "paint the {t} {d}",
             "turn the {c} {t} {d}", "the {t} should be {d}")  # fmt: skip
    there = shape(rng, thing, before, PLACES[place])
    caption = say(rng, words, t=thing, c=before, d=after)
    return Edit(kind="recolour", caption=caption, shapes=([there], [painted(rng, there, after)]))


def two(rng: random.Random) -> Edit:
    """Make two edits in a row: a change of colour, and a turn or a shape."""
    first, second = rng.choice((grey, negative, tint, light))(rng), rng.choice((mirror, flip, add, frame))(rng)
    joint = rng.choice((" and ", ", then ", ", and "))
    caption = first.caption + joint + second.caption
    return replace(first, kind="two", caption=caption, turn=second.turn, shapes=second.shapes)


IMAGE_EDITS = {
    grey: 5, negative: 5, mirror: 5, flip: 4, rotate: 8, tint: 9, sepia: 2, light: 6, contrast: 5, saturation: 4,
    swap_colours: 4, warmth: 3, keep: 6, frame: 4, add: 10, recolour: 5, two: 6,
}  # fmt: skip
"""Relative frequency of each edit."""


def image_edit(rng: random.Random) -> Edit:
    """Return one of the edits for any image."""
    return rng.choices(list(IMAGE_EDITS), list(IMAGE_EDITS.values()))[0](rng)
