"""Instruction edits: what is asked, in varied words, and the numbers that make both pictures.

Every edit of a photograph is one formula (`Recipes`): turn, then `clamp(matrix @ pixel ** gamma + bias)`,
then shapes on top. Every edit of a scene is another scene. So a batch mixes all edits and the whole of it is
drawn on the GPU without a branch. Deblurring, denoising and JPEG restoration are left out on purpose: they
are what the demo teaches.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import numpy as np
from scenes import BACKGROUND_NUMBERS, COLOURS, MAX_SHAPES, PATTERNS, SHAPE_NUMBERS, SHAPES

LUMA = np.array([0.299, 0.587, 0.114])
SAME = np.eye(3)
TURNS = ("none", "mirror", "flip", "half", "left", "right")
"""Geometry of the target; left and right are quarter turns, for square pictures only."""
PICTURE = ("the picture", "the image", "the photo", "it", "this picture", "this")
PLACES = {
    "at the top left": (-0.55, -0.55),
    "at the top": (0.0, -0.55),
    "at the top right": (0.55, -0.55),
    "at the left": (-0.55, 0.0),
    "in the middle": (0.0, 0.0),
    "at the right": (0.55, 0.0),
    "at the bottom left": (-0.55, 0.55),
    "at the bottom": (0.0, 0.55),
    "at the bottom right": (0.55, 0.55),
}
THINGS = SHAPES[:-1]
OVERLAYS = ("add", "recolour", "frame", "two")
"""Kinds whose shape goes on top of the finished picture."""


@dataclass(kw_only=True)
class Edit:
    """One training pair before it is drawn."""

    kind: str
    caption: str
    turn: int = 0
    matrix: np.ndarray = field(default_factory=SAME.copy)
    bias: np.ndarray = field(default_factory=lambda: np.zeros(3))
    gamma: float = 1.0
    photo: int = -1
    """Which photograph; -1 leaves it to training, -2 is a scene."""
    backgrounds: tuple[np.ndarray, np.ndarray] | None = None
    """Of the reference scene and of the target scene."""
    shapes: tuple[list[np.ndarray], list[np.ndarray]] = ((), ())
    """Of the reference and of the target."""


# --- edits of any picture ---------------------------------------------------------------------------------------


def grey(rng: random.Random) -> Edit:
    words = ("make {p} grey", "turn {p} grey", "make {p} black and white", "black and white", "remove all colour",
             "turn {p} into a black and white picture", "convert {p} to greyscale",
             "take the colour out of {p}")  # fmt: skip
    return Edit(kind="grey", caption=_say(rng, words), matrix=np.tile(LUMA, (3, 1)))


def negative(rng: random.Random) -> Edit:
    words = ("make a negative", "invert the colours", "turn {p} into a negative", "invert {p}", "show the negative",
             "negative of {p}", "invert all colours")  # fmt: skip
    return Edit(kind="negative", caption=_say(rng, words), matrix=-SAME, bias=np.ones(3))


def mirror(rng: random.Random) -> Edit:
    words = ("mirror {p}", "flip {p} horizontally", "swap left and right", "flip {p} left to right", "mirror image")
    return Edit(kind="mirror", caption=_say(rng, words), turn=TURNS.index("mirror"))


def flip(rng: random.Random) -> Edit:
    words = ("flip {p} vertically", "swap top and bottom", "flip {p} top to bottom", "mirror {p} vertically")
    return Edit(kind="flip", caption=_say(rng, words), turn=TURNS.index("flip"))


def rotate(rng: random.Random) -> Edit:
    turn = rng.choice(("half", "left", "right"))
    words = {
        "half": ("turn {p} upside down", "rotate {p} by half a turn", "rotate {p} by 180 degrees"),
        "left": ("rotate {p} to the left", "turn {p} to the left", "rotate {p} left by 90 degrees"),
        "right": ("rotate {p} to the right", "turn {p} to the right", "rotate {p} right by 90 degrees"),
    }[turn]
    return Edit(kind=f"rotate_{turn}", caption=_say(rng, words), turn=TURNS.index(turn))


def tint(rng: random.Random) -> Edit:
    name = rng.choice([name for name in COLOURS if name not in ("white", "black", "grey")])
    words = ("tint {p} {c}", "give {p} a {c} tint", "colour {p} {c}", "make everything {c}", "put {p} in {c} light",
             "a {c} tint", "make {p} all {c}")  # fmt: skip
    colour = np.array(COLOURS[name])
    colour = colour / max(LUMA @ colour, 0.25) * 0.62
    matrix = 0.8 * np.outer(colour, LUMA) + 0.2 * SAME
    return Edit(kind="tint", caption=_say(rng, words, c=name), matrix=matrix, bias=0.12 * np.array(COLOURS[name]))


def sepia(rng: random.Random) -> Edit:
    words = ("make {p} sepia", "sepia", "make {p} look old", "give {p} a sepia tone", "an old brown photo")
    matrix = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]]) * 0.85
    return Edit(kind="sepia", caption=_say(rng, words), matrix=matrix)


def light(rng: random.Random) -> Edit:
    if rng.random() < 0.5:
        words = ("make {p} brighter", "brighten {p}", "brighter", "more light", "add light to {p}", "lighten {p}")
        return Edit(kind="brighter", caption=_say(rng, words), gamma=0.7, matrix=1.15 * SAME)
    words = ("make {p} darker", "darken {p}", "darker", "less light", "make {p} look like night", "dim {p}")
    return Edit(kind="darker", caption=_say(rng, words), gamma=1.25, matrix=0.65 * SAME)


def contrast(rng: random.Random) -> Edit:
    if rng.random() < 0.5:
        words = ("more contrast", "raise the contrast", "increase the contrast", "give {p} more contrast")
        factor, kind = 1.6, "more_contrast"
    else:
        words = ("less contrast", "lower the contrast", "reduce the contrast", "give {p} less contrast", "fade {p}")
        factor, kind = 0.5, "less_contrast"
    return Edit(kind=kind, caption=_say(rng, words), matrix=factor * SAME, bias=np.full(3, 0.5 * (1 - factor)))


def saturation(rng: random.Random) -> Edit:
    if rng.random() < 0.5:
        words = ("more colour", "make the colours stronger", "raise the saturation", "make {p} more colourful")
        factor, kind = 1.9, "more_colour"
    else:
        words = ("less colour", "make the colours weaker", "lower the saturation", "make {p} less colourful")
        factor, kind = 0.4, "less_colour"
    matrix = factor * SAME + (1 - factor) * np.tile(LUMA, (3, 1))
    return Edit(kind=kind, caption=_say(rng, words), matrix=matrix)


def swap_colours(rng: random.Random) -> Edit:
    first, second = rng.sample(range(3), 2)
    names = ("red", "green", "blue")
    words = ("swap {a} and {b}", "exchange {a} and {b}", "swap the colours {a} and {b}")
    matrix = SAME.copy()
    matrix[[first, second]] = matrix[[second, first]]
    return Edit(kind="swap_colours", caption=_say(rng, words, a=names[first], b=names[second]), matrix=matrix)


def warmth(rng: random.Random) -> Edit:
    if rng.random() < 0.5:
        words = ("make {p} warmer", "warmer colours", "warm light", "give {p} warmer colours")
        return Edit(kind="warmer", caption=_say(rng, words), matrix=np.diag([1.15, 1.0, 0.65]))
    words = ("make {p} cooler", "cooler colours", "cold light", "give {p} cooler colours")
    return Edit(kind="cooler", caption=_say(rng, words), matrix=np.diag([0.65, 0.95, 1.2]))


def keep(rng: random.Random) -> Edit:
    words = ("keep {p} as it is", "change nothing", "do nothing", "the same picture", "copy {p}", "leave {p} as it is")
    return Edit(kind="keep", caption=_say(rng, words))


def frame(rng: random.Random) -> Edit:
    name = rng.choice(list(COLOURS))
    words = ("put a {c} frame around {p}", "add a {c} frame", "a {c} frame around {p}", "frame {p} in {c}",
             "add a {c} border")  # fmt: skip
    shape = _shape(rng, SHAPES.index("frame"), name, (0.0, 0.0), radius=rng.uniform(0.12, 0.2), turn=0.0)
    return Edit(kind="frame", caption=_say(rng, words, c=name), shapes=([], [shape]))


def add(rng: random.Random) -> Edit:
    thing, name, place = rng.choice(THINGS), rng.choice(list(COLOURS)), rng.choice(list(PLACES))
    words = ("add a {c} {t} {l}", "put a {c} {t} {l}", "draw a {c} {t} {l}", "place a {c} {t} {l}",
             "{l}, add a {c} {t}")  # fmt: skip
    shape = _shape(rng, SHAPES.index(thing), name, PLACES[place])
    return Edit(kind="add", caption=_say(rng, words, c=name, t=thing, l=place), shapes=([], [shape]))


def recolour(rng: random.Random) -> Edit:
    """A shape that is on the picture already gets another colour."""
    thing, place = rng.choice(THINGS), rng.choice(list(PLACES))
    before, after = rng.sample(list(COLOURS), 2)
    words = ("make the {t} {d}", "change the {c} {t} to {d}", "recolour the {t} in {d}", "paint the {t} {d}",
             "turn the {c} {t} {d}", "the {t} should be {d}")  # fmt: skip
    shape = _shape(rng, SHAPES.index(thing), before, PLACES[place])
    caption = _say(rng, words, t=thing, c=before, d=after)
    return Edit(kind="recolour", caption=caption, shapes=([shape], [_painted(rng, shape, after)]))


def two(rng: random.Random) -> Edit:
    """Two edits in a row: a change of colour, and a turn or a shape."""
    first, second = rng.choice((grey, negative, tint, light))(rng), rng.choice((mirror, flip, add, frame))(rng)
    joint = rng.choice((" and ", ", then ", ", and "))
    caption = first.caption + joint + second.caption
    return replace(first, kind="two", caption=caption, turn=second.turn, shapes=second.shapes)


# --- edits of scenes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A shape of a scene, with the words for it."""

    thing: str
    colour: str
    place: str
    numbers: np.ndarray

    def __str__(self) -> str:
        return f"{self.colour} {self.thing}"


def scene(rng: random.Random, count: int) -> tuple[np.ndarray, str, list[Placed]]:
    """A background, its words, and ``count`` shapes of different kinds at different places."""
    background, words, used = random_background(rng)
    places = rng.sample(list(PLACES), count)
    things = rng.sample(THINGS, count)
    colours = rng.sample([name for name in COLOURS if name not in used], count)
    placed = [
        Placed(thing=t, colour=c, place=p, numbers=_shape(rng, SHAPES.index(t), c, PLACES[p]))
        for t, c, p in zip(things, colours, places, strict=True)
    ]
    return background, words, placed


def scene_edit(rng: random.Random) -> Edit:
    """One of the edits that need to know what is in the picture."""
    background, _, placed = scene(rng, rng.choice((1, 1, 2, 2, 3)))
    chosen = rng.randrange(len(placed))
    thing, before = placed[chosen], [p.numbers for p in placed]
    after = list(before)
    new_background = background
    kind = rng.choices(
        ("recolour", "move", "remove", "add", "background", "exchange", "resize"), (5, 5, 5, 3, 6, 3, 2)
    )[0]
    name = rng.choice((str(thing), thing.thing))
    if kind == "recolour":
        colour = rng.choice([c for c in COLOURS if c != thing.colour])
        after[chosen] = _painted(rng, thing.numbers, colour)
        words = ("make the {n} {d}", "change the {n} to {d}", "recolour the {n} in {d}", "paint the {n} {d}",
                 "turn the {n} {d}", "the {n} should be {d}")  # fmt: skip
        caption = _say(rng, words, n=name, d=colour)
    elif kind == "move":
        place = rng.choice([p for p in PLACES if p not in {q.place for q in placed}])
        after[chosen] = thing.numbers.copy()
        after[chosen][2:4] = _jitter(rng, PLACES[place])
        words = ("move the {n} {to}", "put the {n} {l}", "place the {n} {l}", "shift the {n} {to}")
        caption = _say(rng, words, n=name, l=place, to=place.replace("at the", "to the").replace("in the", "to the"))
    elif kind == "remove":
        after.pop(chosen)
        words = ("remove the {n}", "delete the {n}", "take the {n} away", "erase the {n}", "no {n}")
        caption = _say(rng, words, n=name)
    elif kind == "add":
        after.pop(chosen)
        before, after = after, before
        words = ("add a {n} {l}", "put a {n} {l}", "draw a {n} {l}", "place a {n} {l}", "{l}, add a {n}")
        caption = _say(rng, words, n=str(thing), l=thing.place)
    elif kind == "background":
        new_background, ground, _ = random_background(rng)
        words = ("change the background to {g}", "make the background {g}", "replace the background with {g}",
                 "swap the background for {g}", "put it on {g}")  # fmt: skip
        caption = _say(rng, words, g=ground)
    elif kind == "exchange":
        other = rng.choice([t for t in THINGS if t not in {q.thing for q in placed}])
        after[chosen] = thing.numbers.copy()
        after[chosen][1] = SHAPES.index(other)
        words = ("turn the {n} into a {o}", "replace the {n} with a {o}", "change the {n} to a {o}",
                 "make the {n} a {o}")  # fmt: skip
        caption = _say(rng, words, n=name, o=other)
    else:
        larger = rng.random() < 0.5
        after[chosen] = thing.numbers.copy()
        after[chosen][4] *= 1.5 if larger else 0.6
        words = ("make the {n} {s}", "the {n} should be {s}", "enlarge the {n}" if larger else "shrink the {n}")
        caption = _say(rng, words, n=name, s="larger" if larger else "smaller")
    grounds = (background, new_background)
    return Edit(kind=f"scene_{kind}", caption=caption, photo=-2, backgrounds=grounds, shapes=(before, after))


def random_background(rng: random.Random) -> tuple[np.ndarray, str, set[str]]:
    """Numbers of a background, the words for it ("a blue striped background"), and its colours' names."""
    pattern = rng.choice(PATTERNS)
    first, second = rng.sample(list(COLOURS), 2)
    numbers = np.zeros(BACKGROUND_NUMBERS)
    numbers[0] = PATTERNS.index(pattern)
    numbers[1:4], numbers[4:7] = _colour(rng, first), _colour(rng, second)
    numbers[7] = rng.uniform(1.5, 4.5)
    numbers[8] = rng.choice((0.0, math.pi / 2, math.pi / 4)) if pattern != "gradient" else rng.uniform(0, 6.28)
    numbers[9:] = [rng.uniform(0, 6.28) for _ in range(5)]
    if pattern == "plain":
        return numbers, f"a {first} background", {first}
    words = (f"a {first} and {second} {pattern} background", f"a {pattern} background in {first} and {second}")
    return numbers, rng.choice(words), {first, second}


def describe(rng: random.Random) -> Edit:
    """A scene and its description, without a reference."""
    background, ground, placed = scene(rng, rng.choice((1, 1, 1, 2, 2, 3)))
    with_place = rng.random() < 0.7
    names = [f"a {p} {p.place}" if with_place else f"a {p}" for p in placed]
    words = rng.choice(("{n} on {g}", "a picture of {n} on {g}", "{g} with {n}"))
    caption = _articles(words.format(n=" and ".join(names), g=ground))
    shapes = [p.numbers for p in placed]
    grounds = (background, background)
    return Edit(kind="describe", caption=caption, photo=-2, backgrounds=grounds, shapes=(shapes, shapes))


def photograph(rng: random.Random, subjects: tuple[str, ...]) -> Edit:
    """A photograph and its subject, without a reference."""
    index = rng.randrange(len(subjects))
    words = ("a photograph of {s}", "a photo of {s}", "{s}", "a picture of {s}")
    return Edit(kind="photograph", caption=_say(rng, words, s=subjects[index]), photo=index)


# --- words and numbers ------------------------------------------------------------------------------------------


def _say(rng: random.Random, words: tuple[str, ...], **names: str) -> str:
    caption = _articles(rng.choice(words).format(p=rng.choice(PICTURE), **names))
    chance = rng.random()
    if chance < 0.12:
        caption = "please " + caption
    elif chance < 0.3:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.15 else caption


def _articles(caption: str) -> str:
    return caption.replace("a orange", "an orange")


def _colour(rng: random.Random, name: str) -> np.ndarray:
    return np.clip([channel + rng.uniform(-0.05, 0.05) for channel in COLOURS[name]], 0, 1)


def _jitter(rng: random.Random, place: tuple[float, float]) -> tuple[float, float]:
    return place[0] + rng.uniform(-0.06, 0.06), place[1] + rng.uniform(-0.06, 0.06)


def _shape(rng: random.Random, kind: int, colour: str, place: tuple[float, float], *,
           radius: float | None = None, turn: float | None = None) -> np.ndarray:  # fmt: skip
    numbers = np.zeros(SHAPE_NUMBERS)
    numbers[0], numbers[1] = 1, kind
    numbers[2:4] = _jitter(rng, place)
    numbers[4] = rng.uniform(0.25, 0.42) if radius is None else radius
    numbers[5] = rng.uniform(-0.2, 0.2) if turn is None else turn
    numbers[6:9] = _colour(rng, colour)
    return numbers


def _painted(rng: random.Random, shape: np.ndarray, colour: str) -> np.ndarray:
    painted = shape.copy()
    painted[6:9] = _colour(rng, colour)
    return painted


# --- many of them -----------------------------------------------------------------------------------------------

ANYWHERE = {
    grey: 5, negative: 5, mirror: 5, flip: 4, rotate: 8, tint: 9, sepia: 2, light: 6, contrast: 5, saturation: 4,
    swap_colours: 4, warmth: 3, keep: 6, frame: 4, add: 10, recolour: 5, two: 6,
}  # fmt: skip
SCENE_SHARE = 0.30
"""Of the edits, those that need to know what is in a procedural scene."""
SCENE_FOR_ANY = 0.12
"""Of the other edits, those made on a scene and not on a photograph."""


def edit(rng: random.Random) -> Edit:
    """A random pair: reference, instruction, target."""
    if rng.random() < SCENE_SHARE:
        return scene_edit(rng)
    made = rng.choices(list(ANYWHERE), list(ANYWHERE.values()))[0](rng)
    if rng.random() < SCENE_FOR_ANY:
        background, _, placed = scene(rng, rng.choice((1, 2)))
        if made.kind not in OVERLAYS:
            before = [p.numbers for p in placed]
            made.shapes = (before, before)
        made.photo, made.backgrounds = -2, (background, background)
    return made


def text_to_image(rng: random.Random, subjects: tuple[str, ...]) -> Edit:
    """A random picture with its description, or the target of an edit whose reference is dropped."""
    chance = rng.random()
    if chance < 0.5:
        return describe(rng)
    return photograph(rng, subjects) if chance < 0.85 else edit(rng)


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """Many edits as arrays, ready for the GPU; the first axis is the edit."""

    kinds: list[str]
    captions: list[str]
    turn: np.ndarray
    matrix: np.ndarray
    bias: np.ndarray
    gamma: np.ndarray
    photo: np.ndarray
    backgrounds: np.ndarray
    """[N, 2, BACKGROUND_NUMBERS]: of the reference, of the target."""
    shapes: np.ndarray
    """[N, 2, MAX_SHAPES, SHAPE_NUMBERS]."""
    overlay: np.ndarray
    """Whether the target's shapes are put on after turn and colour (and only the first of them), 0 or 1."""


def collect(edits: list[Edit]) -> Recipes:
    """Stack edits."""
    backgrounds = np.zeros((len(edits), 2, BACKGROUND_NUMBERS), np.float32)
    backgrounds[:, :, 7] = 1
    shapes = np.zeros((len(edits), 2, MAX_SHAPES, SHAPE_NUMBERS), np.float32)
    for index, item in enumerate(edits):
        for side in range(2):
            if item.backgrounds is not None:
                backgrounds[index, side] = item.backgrounds[side]
            for slot, numbers in enumerate(item.shapes[side]):
                shapes[index, side, slot] = numbers
    return Recipes(
        kinds=[item.kind for item in edits],
        captions=[item.caption for item in edits],
        turn=np.array([item.turn for item in edits], np.int64),
        matrix=np.stack([item.matrix for item in edits]).astype(np.float32),
        bias=np.stack([item.bias for item in edits]).astype(np.float32),
        gamma=np.array([item.gamma for item in edits], np.float32),
        photo=np.array([item.photo for item in edits], np.int64),
        backgrounds=backgrounds,
        shapes=shapes,
        overlay=np.array([item.kind in OVERLAYS for item in edits], np.float32),
    )
