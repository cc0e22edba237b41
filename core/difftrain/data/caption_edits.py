"""Changes to captions after they are read: an instance prompt, filters, and shuffled tags."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from difftrain.config.options import Options
from difftrain.data.seeding import derive_seed
from difftrain.errors import DataError

FILTER_FILES = (".txt", ".json")
"""Endings of files that hold filters."""
SEPARATORS: Mapping[str, tuple[str, str]] = {
    "comma": (",", ", "),
    "space": (" ", " "),
    "semicolon": (";", "; "),
    "period": (".", ". "),
}
"""By name: what parts tags, and what joins them again."""
_SUBSTITUTION = re.compile(r"s/((?:[^/\\]|\\.)+)/((?:[^/\\]|\\.)*)/?")


class CaptionShuffle(Options):
    """The keys of ``caption_shuffle``."""

    enable: bool = True
    """False is as if there were no caption_shuffle."""
    count: int = Field(1, ge=1, le=100)
    """Shuffled captions for each caption; every one is encoded once."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Another seed gives other orders."""
    split_on: Literal["comma", "space", "semicolon", "period"] = "comma"
    """What parts the tags."""
    position_start: int = Field(0, ge=0)
    """So many first tags stay where they are."""
    include_original: bool = True
    """Also keep the caption as it is."""


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """What to look for in a caption, and what to put in its place."""

    pattern: re.Pattern[str]
    replacement: str


@dataclass(frozen=True, kw_only=True)
class CaptionEdits:
    """What a dataset changes in its captions."""

    prompt: str = ""
    """Put before captions that come from the data source; caption sources do it themselves."""
    filters: tuple[str, ...] = ()
    """As the user wrote them, or one file."""
    shuffle: CaptionShuffle | None = None

    def apply(self, captions: tuple[str, ...] | None, *, from_source: bool = False) -> tuple[str, ...] | None:
        """Return the captions of one image, changed, each once; None stays None.

        Args:
            from_source: Whether they come from the data source itself.

        Raises:
            DataError: If a file of filters cannot be read.
        """
        prompt = self.prompt if from_source else ""
        if captions is None or not (prompt or self.filters or self.shuffle):
            return captions
        kept = (self._filtered(f"{prompt} {caption}".strip() if prompt else caption) for caption in captions)
        return tuple(dict.fromkeys(one for caption in kept for one in self._shuffled(caption)))

    @cached_property
    def _substitutions(self) -> Sequence[Substitution]:
        return [read_filter(text) for text in _from_file(self.filters)]

    def _filtered(self, caption: str) -> str:
        if not self.filters:
            return caption
        for one in self._substitutions:
            caption = one.pattern.sub(one.replacement, caption)
        return " ".join(caption.split())

    def _shuffled(self, caption: str) -> Iterator[str]:
        """Yield the caption and its shuffled ones; the orders depend on the text and the seed alone."""
        rules = self.shuffle
        if rules is None:
            yield caption
            return
        separator, joint = SEPARATORS[rules.split_on]
        tags = [tag.strip() for tag in caption.split(separator) if tag.strip()]
        first, rest = tags[: rules.position_start], tags[rules.position_start :]
        if rules.include_original or len(rest) < 2:
            yield caption
        if len(rest) < 2:
            return
        for number in range(rules.count):
            draw = random.Random(derive_seed(rules.seed, "caption_shuffle", caption, number))
            yield joint.join([*first, *draw.sample(rest, len(rest))])


UNEDITED = CaptionEdits()


def read_filter(text: str) -> Substitution:
    """Return what a filter takes out or replaces; a text that is no regular expression is meant literally.

    Raises:
        ValueError: If ``s/find/replacement/`` has no valid expression in it.
    """
    if text.startswith("s/"):
        match = _SUBSTITUTION.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} must be s/find/replacement/")
        find, replacement = (part.replace(r"\/", "/") for part in match.groups())
        try:
            pattern = re.compile(find)
            pattern.sub(replacement, "")
        except (re.error, IndexError) as error:
            raise ValueError(f"{text!r} is no valid regular expression: {error}") from error
        return Substitution(pattern=pattern, replacement=replacement)
    try:
        return Substitution(pattern=re.compile(text), replacement="")
    except re.error:
        return Substitution(pattern=re.compile(re.escape(text)), replacement="")


def is_filter_file(filters: Sequence[str]) -> bool:
    """Return whether filters are one file that holds them."""
    return len(filters) == 1 and filters[0].endswith(FILTER_FILES) and not filters[0].startswith("s/")


def _from_file(filters: Sequence[str]) -> Sequence[str]:
    if not is_filter_file(filters):
        return filters
    path = Path(filters[0]).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
        if not (isinstance(found, list) and all(isinstance(one, str) for one in found)):
            raise ValueError('must be a list of texts ["..."]')
        for one in found:
            read_filter(one)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"caption_filter_list: {path} cannot be used: {why}\nhint: write one filter a line, or a JSON list of texts"
        ) from error
    return [one for one in found if one]
