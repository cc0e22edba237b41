"""Procedural scenes with words for them, and the edits that require knowing what is in the image."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from recipes import SCENE, Edit
from scenes import BACKGROUND_NUMBERS, COLOURS, PATTERNS
from shape_numbers import PLACES, THINGS, exchanged, like, moved, painted, resized, shape
from wording import say, with_articles


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A shape of a scene, with words for it."""

    thing: str
    colour: str
    place: str
    numbers: np.ndarray

    def __str__(self) -> str:
        return f"{self.colour} {self.thing}"


def random_background(rng: random.Random) -> tuple[np.ndarray, str, set[str]]:
    """Return numbers of a background, words for it ("a blue striped background"), and its colours' names."""
    pattern = rng.choice(PATTERNS)
    first, second = rng.sample(list(COLOURS), 2)
    numbers = np.zeros(BACKGROUND_NUMBERS)
    numbers[0] = PATTERNS.index(pattern)
    numbers[1:4], numbers[4:7] = like(rng, first), like(rng, second)
    numbers[7] = rng.uniform(1.5, 4.5)
    numbers[8] = rng.choice((0.0, math.pi / 2, math.pi / 4)) if pattern != "gradient" else rng.uniform(0, 6.28)
    numbers[9:] = [rng.uniform(0, 6.28) for _ in range(5)]
    if pattern == "plain":
        return numbers, f"a {first} background", {first}
    words = (f"a {first} and {second} {pattern} background", f"a {pattern} background in {first} and {second}")
    return numbers, rng.choice(words), {first, second}


def random_scene(rng: random.Random, count: int) -> tuple[np.ndarray, str, list[Placed]]:
    """Return a background, words for it, and ``count`` shapes of different kinds at different places."""
    background, words, used = random_background(rng)
    places = rng.sample(list(PLACES), count)
    things = rng.sample(THINGS, count)
    colours = rng.sample([name for name in COLOURS if name not in used], count)
    placed = [
        Placed(thing=t, colour=c, place=p, numbers=shape(rng, t, c, PLACES[p]))
        for t, c, p in zip(things, colours, places, strict=True)
    ]
    return background, words, placed


def describe(rng: random.Random) -> Edit:
    """Return a scene and its description, without a reference."""
    background, ground, placed = random_scene(rng, rng.choice((1, 1, 1, 2, 2, 3)))
    with_place = rng.random() < 0.7
    names = [f"a {p} {p.place}" if with_place else f"a {p}" for p in placed]
    words = rng.choice(("{n} on {g}", "a picture of {n} on {g}", "{g} with {n}"))
    caption = with_articles(words.format(n=" and ".join(names), g=ground))
    shapes = [p.numbers for p in placed]
    grounds = (background, background)
    return Edit(kind="describe", caption=caption, photo=SCENE, backgrounds=grounds, shapes=(shapes, shapes))


# --- edits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A scene and the one shape in it that an edit is about."""

    background: np.ndarray
    placed: list[Placed]
    index: int
    name: str
    """The shape's name in the instruction, with or without its colour."""

    @property
    def thing(self) -> Placed:
        return self.placed[self.index]

    @property
    def shapes(self) -> list[np.ndarray]:
        return [item.numbers for item in self.placed]

    @property
    def other_shapes(self) -> list[np.ndarray]:
        return [item.numbers for place, item in enumerate(self.placed) if place != self.index]

    def changed(self, caption: str, numbers: np.ndarray) -> Edit:
        """Return the pair in which the shape becomes another."""
        after = self.shapes
        after[self.index] = numbers
        return self.pair(caption, self.shapes, after)

    def pair(self, caption: str, before: list[np.ndarray], after: list[np.ndarray],
             background: np.ndarray | None = None) -> Edit:  # fmt: skip
        """Return the pair with these shapes, on another background if one is given."""
        grounds = (self.background, self.background if background is None else background)
        return Edit(kind="scene", caption=caption, photo=SCENE, backgrounds=grounds, shapes=(before, after))


def recolour(rng: random.Random, subject: Subject) -> Edit:
    colour = rng.choice([name for name in COLOURS if name != subject.thing.colour])
    numbers = painted(rng, subject.thing.numbers, colour)
    words = ("make the {n} {d}", "change the {n} to {d}", "recolour the {n} in {d}", "paint the {n} {d}",
             "turn the {n} {d}", "the {n} should be {d}")  # fmt: skip
    return subject.changed(say(rng, words, n=subject.name, d=colour), numbers)


def move(rng: random.Random, subject: Subject) -> Edit:
    taken = {item.place for item in subject.placed}
    place = rng.choice([name for name in PLACES if name not in taken])
    numbers = moved(rng, subject.thing.numbers, place)
    words = ("move the {n} {to}", "put the {n} {l}", "place the {n} {l}", "shift the {n} {to}")
    to = place.replace("at the", "to the").replace("in the", "to the")
    return subject.changed(say(rng, words, n=subject.name, l=place, to=to), numbers)


def remove(rng: random.Random, subject: Subject) -> Edit:
    words = ("remove the {n}", "delete the {n}", "take the {n} away", "erase the {n}", "no {n}")
    return subject.pair(say(rng, words, n=subject.name), subject.shapes, subject.other_shapes)


def add(rng: random.Random, subject: Subject) -> Edit:
    words = ("add a {n} {l}", "put a {n} {l}", "draw a {n} {l}", "place a {n} {l}", "{l}, add a {n}")
    caption = say(rng, words, n=str(subject.thing), l=subject.thing.place)
    return subject.pair(caption, subject.other_shapes, subject.shapes)


def swap_background(rng: random.Random, subject: Subject) -> Edit:
    background, ground, _ = random_background(rng)
    words = ("change the background to {g}", "make the background {g}", "replace the background with {g}",
             "swap the background for {g}", "put it on {g}")  # fmt: skip
    return subject.pair(say(rng, words, g=ground), subject.shapes, subject.shapes, background)


def exchange(rng: random.Random, subject: Subject) -> Edit:
    taken = {item.thing for item in subject.placed}
    other = rng.choice([name for name in THINGS if name not in taken])
    words = ("turn the {n} into a {o}", "replace the {n} with a {o}", "change the {n} to a {o}",
             "make the {n} a {o}")  # fmt: skip
    return subject.changed(say(rng, words, n=subject.name, o=other), exchanged(subject.thing.numbers, other))


def resize(rng: random.Random, subject: Subject) -> Edit:
    larger = rng.random() < 0.5
    words = ("make the {n} {s}", "the {n} should be {s}", "enlarge the {n}" if larger else "shrink the {n}")
    caption = say(rng, words, n=subject.name, s="larger" if larger else "smaller")
    return subject.changed(caption, resized(subject.thing.numbers, 1.5 if larger else 0.6))


SCENE_EDITS = {
    "recolour": (recolour, 5),
    "move": (move, 5),
    "remove": (remove, 5),
    "add": (add, 3),
    "background": (swap_background, 6),
    "exchange": (exchange, 3),
    "resize": (resize, 2),
}
"""The function of each kind (`scene_...`), and how often it is drawn."""


def scene_edit(rng: random.Random) -> Edit:
    """Return one of the edits that require knowing what is in the image."""
    background, _, placed = random_scene(rng, rng.choice((1, 1, 2, 2, 3)))
    index = rng.randrange(len(placed))
    kind = rng.choices(list(SCENE_EDITS), [often for _, often in SCENE_EDITS.values()])[0]
    name = rng.choice((str(placed[index]), placed[index].thing))
    made = SCENE_EDITS[kind][0](rng, Subject(background=background, placed=placed, index=index, name=name))
    made.kind = f"scene_{kind}"
    return made
