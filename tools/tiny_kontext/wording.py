"""Phrases an instruction: one of several wordings, sometimes with a please, a capital or a full stop."""

from __future__ import annotations

import random

IMAGE = ("the picture", "the image", "the photo", "it", "this picture", "this")
"""Replacements for `{p}` in a wording."""


def say(rng: random.Random, words: tuple[str, ...], **names: str) -> str:
    """Return one of the wordings, with its gaps filled.

    Args:
        rng: Source of the choice.
        words: Format strings; `{p}` is the image.
        names: Values for the other gaps.
    """
    caption = with_articles(rng.choice(words).format(p=rng.choice(IMAGE), **names))
    chance = rng.random()
    if chance < 0.12:
        caption = "please " + caption
    elif chance < 0.3:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.15 else caption


def with_articles(caption: str) -> str:
    """Fix the article before a vowel; orange is the only colour or shape that begins with one."""
    return caption.replace("a orange", "an orange")
