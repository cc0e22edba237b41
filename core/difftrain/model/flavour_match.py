"""Whether weights are those of the flavour that is trained, by the hub id and by what their files say.

A flavour trained on another one's weights runs without an error and learns the wrong thing, so what is certain stops
the run before any data is read, and what is only likely is a note. Start with :func:`check_name`, :func:`check_files`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from difftrain.contracts import ModelFlavour
from difftrain.errors import ConfigError, ModelError, first_few
from difftrain.types import ModelLocation

if TYPE_CHECKING:
    from difftrain.config.schema import RunConfig

Flavours = Mapping[str, type[ModelFlavour]]
"""The flavours of one family, by name."""

_ID = r"(?P<id>[\w.-]+/[\w.-]+?)"
_PAGE = re.compile(rf"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/{_ID}(?:\.git)?(?:[/?#].*)?")
_SHORT = re.compile(rf"(?:hf://)?{_ID}/*")
_CACHED = re.compile(r"(?:^|[/\\])models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)(?=[/\\]|$)")


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """What weights are, as far as it can be told."""

    flavours: tuple[str, ...]
    """Those that they can be of; none when they are good for all, or are another model's."""
    notes: tuple[str, ...] = ()


def is_here(text: str) -> bool:
    """Whether there is a folder or file of this name, which wins over a hub id of the same spelling.

    What no disk can have as a name, or what may not be looked at, is not here.
    """
    return os.path.exists(os.path.expanduser(text))  # noqa: PTH110, PTH111  # unlike Path's, these raise nothing


def hub_id_of(text: str) -> str | None:
    """The hub id that a text names: an id, the address of a page of the hub; or None.

    Ids of known hosts only: any other address, and a path, may lead anywhere.
    """
    text = text.strip()
    match = _PAGE.fullmatch(text) or _SHORT.fullmatch(text)
    return None if match is None or match["id"].startswith((".", "/")) else match["id"]


def cached_hub_id(path: str) -> str | None:
    """The hub id of a folder of the hub's cache, ``.../models--OWNER--NAME/snapshots/COMMIT``; or None."""
    match = _CACHED.search(path)
    return f"{match['owner']}/{match['name']}" if match else None


def asked_name(text: str, flavours: Flavours) -> str:
    """The name that a family is asked for: for a hub page its id, for the id of a flavour the hub's own spelling."""
    hub_id = hub_id_of(text)
    own = flavour_of(hub_id, flavours)
    return flavours[own].hub_id if own else hub_id or text


def flavour_of(hub_id: str | None, flavours: Flavours) -> str | None:
    """The flavour whose own weights a hub id names, in any spelling; or None."""
    wanted = (hub_id or "").casefold()
    return next((name for name, flavour in flavours.items() if flavour.hub_id.casefold() == wanted), None)


def check_name(config: RunConfig, chosen: ModelFlavour, flavours: Flavours) -> list[str]:
    """Compare what ``pretrained_model_name_or_path`` names with the flavour that is trained.

    Args:
        config: The config.
        chosen: What is trained.
        flavours: All of its family.

    Returns:
        Notes: one where weights of another flavour are allowed.

    Raises:
        ConfigError: If it is the hub id, or a folder of the hub's cache, of another flavour.
    """
    text = config.pretrained_model_name_or_path or ""
    hub_id = cached_hub_id(text)
    if hub_id is None and not is_here(text):
        hub_id = hub_id_of(text)
    other = flavour_of(hub_id, flavours)
    if other is None or other == chosen.name:
        return []
    found = f"pretrained_model_name_or_path: {text} has the weights of flavour {other!r}"
    return [_allowed_or_raise(found, chosen, [flavours[other]], allowed=config.allow_other_weights, error=ConfigError)]


def check_files(location: ModelLocation, chosen: ModelFlavour, flavours: Flavours, *, allowed: bool) -> Recognised:
    """Compare what the model's files say with the flavour that is trained.

    Raises:
        ModelError: If they are certainly not that flavour's.
    """
    facts = location.facts
    named = flavour_of(cached_hub_id(location.name) or (location.name if location.path is None else None), flavours)
    if facts is None:
        return Recognised(flavours=())
    if named is not None:  # another one than the chosen was told of with the config
        return Recognised(flavours=(named,))
    fitting = [flavour for flavour in flavours.values() if _fits(flavour, facts)]
    names = tuple(flavour.name for flavour in fitting)
    if chosen.name not in names:
        said = ", ".join(f"{key} {value}" for key, value in facts.items())
        whose = f"flavour {' or '.join(map(repr, names))}" if names else f"no flavour of {chosen.family!r}"
        found = f"model {location.name!r} has the weights of {whose} ({said})"
        note = _allowed_or_raise(found, chosen, fitting, allowed=allowed, error=ModelError)
        return Recognised(flavours=names, notes=(note,))
    return Recognised(flavours=names, notes=tuple(_doubts(location, facts, chosen, fitting)))


def _fits(flavour: type[ModelFlavour], facts: Mapping[str, str]) -> bool:
    """A fact that the files do not tell, or that the flavour says nothing of, speaks against nothing."""
    return all(facts[key] in values for key, values in flavour.weights.items() if key in facts)


def _doubts(
    location: ModelLocation, facts: Mapping[str, str], chosen: ModelFlavour, fitting: Iterable[type[ModelFlavour]]
) -> Iterable[str]:
    """At most one note: of a name that speaks of another flavour, or that nothing tells."""
    for text in (PurePath(location.name).name, *location.origins):
        spoken_of = _spoken_of(text, fitting)
        if spoken_of == chosen.name:
            return
        if spoken_of is not None:
            yield (
                f"model {location.name!r}: the weights may be those of flavour {spoken_of!r}, as the name {text!r} "
                f"says, and no file tells; they are trained as {chosen.name!r}"
            )
            return
    unknown = [key for key in chosen.weights if key not in facts]
    if unknown:
        yield (
            f"model {location.name!r} does not tell of which flavour its weights are (unknown: {', '.join(unknown)}); "
            f"they are taken for {chosen.name!r}"
        )


def _spoken_of(text: str, flavours: Iterable[type[ModelFlavour]]) -> str | None:
    """The flavour of whose hub name a text has every word, of several the one with most words; or None."""
    of_flavour = {flavour.name: _words(flavour.hub_id.rpartition("/")[2]) for flavour in flavours}
    found = [name for name, words in of_flavour.items() if words <= _words(text)]
    return max(found, key=lambda name: len(of_flavour[name]), default=None)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower()))


def _allowed_or_raise(
    found: str,
    chosen: ModelFlavour,
    fitting: Sequence[type[ModelFlavour]],
    *,
    allowed: bool,
    error: type[ConfigError] | type[ModelError],
) -> str:
    """The note where other weights are allowed, else the error with every way out."""
    bases = [flavour.distilled_from for flavour in fitting]
    collapse = (
        f"; these are step-distilled, and training such a model makes its images collapse: train {bases[0]} instead"
        if bases and all(bases)
        else ""
    )
    if allowed:
        return f"{found}; they are trained as {chosen.name!r}, since allow_other_weights is on{collapse}"
    names = [flavour.name for flavour in fitting]
    ways = [
        f'to train {chosen.name}, write "pretrained_model_name_or_path": "{chosen.hub_id}" or leave it out',
        *([f'to train these weights, write "model_flavour": "{names[0]}"'] if names else []),
        f'to train {chosen.name} on these weights all the same, write "allow_other_weights": true',
    ]
    if len(names) > 1:
        ways[1] += f" (or {first_few(names[1:])})"
    raise error(f"{found}, but model_flavour is {chosen.name!r}{collapse}\nhint: {'; '.join(ways)}")
