"""Checks by hub id and files that the weights belong to the flavour to train.

A flavour trained on another's weights runs without an error and learns the wrong thing. A certain mismatch stops
the run before any data is read, a likely one is a note. Start with :func:`check_name`, :func:`check_files`.
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
    """The flavours that weights belong to, as far as it can be told."""

    flavours: tuple[str, ...]
    """Flavours that they may belong to; empty if they suit all, or belong to another model."""
    notes: tuple[str, ...] = ()


def is_here(text: str) -> bool:
    """Return whether a folder or file has this name; it wins over a hub id of the same spelling.

    Names that no disk can have, and names that may not be examined, are not here.
    """
    return os.path.exists(os.path.expanduser(text))  # noqa: PTH110, PTH111  # unlike Path's, these raise nothing


def hub_id_of(text: str) -> str | None:
    """Return the hub id that a text names: an id, or the address of a hub page; else None.

    Accepts known hosts only: any other address, and a path, may lead anywhere.
    """
    text = text.strip()
    match = _PAGE.fullmatch(text) or _SHORT.fullmatch(text)
    return None if match is None or match["id"].startswith((".", "/")) else match["id"]


def cached_hub_id(path: str) -> str | None:
    """Return the hub id of a hub cache folder, ``.../models--OWNER--NAME/snapshots/COMMIT``; else None."""
    match = _CACHED.search(path)
    return f"{match['owner']}/{match['name']}" if match else None


def asked_name(text: str, flavours: Flavours) -> str:
    """Return the name to ask a family for: the id of a hub page, or a flavour's id in the hub's own spelling."""
    hub_id = hub_id_of(text)
    own = flavour_of(hub_id, flavours)
    return flavours[own].hub_id if own else hub_id or text


def flavour_of(hub_id: str | None, flavours: Flavours) -> str | None:
    """Return the flavour whose own weights a hub id names, in any spelling; else None."""
    wanted = (hub_id or "").casefold()
    return next((name for name, flavour in flavours.items() if flavour.hub_id.casefold() == wanted), None)


def check_name(config: RunConfig, chosen: ModelFlavour, flavours: Flavours) -> list[str]:
    """Compare the name of the weights with the flavour to train: that of the denoiser, if it has its own.

    Args:
        config: The config.
        chosen: The flavour to train.
        flavours: All flavours of its family.

    Returns:
        Notes: one if weights of another flavour are allowed.

    Raises:
        ConfigError: If it is the hub id, or a hub cache folder, of another flavour.
    """
    key = denoiser_key(separate=config.pretrained_transformer_model_name_or_path is not None)
    text = getattr(config, key) or ""
    hub_id = cached_hub_id(text)
    if hub_id is None and not is_here(text):
        hub_id = hub_id_of(text)
    other = flavour_of(hub_id, flavours)
    if other is None or other == chosen.name:
        return []
    found = f"{key}: {text} has the weights of flavour {other!r}"
    allowed = config.allow_other_weights
    return [_allowed_or_raise(found, chosen, [flavours[other]], key=key, allowed=allowed, error=ConfigError)]


def denoiser_key(*, separate: bool) -> str:
    """Return the option that names the weights to train."""
    return "pretrained_transformer_model_name_or_path" if separate else "pretrained_model_name_or_path"


def check_files(location: ModelLocation, chosen: ModelFlavour, flavours: Flavours, *, allowed: bool) -> Recognised:
    """Compare the facts in the denoiser's files with the flavour to train.

    Raises:
        ModelError: If the weights certainly belong to another flavour.
    """
    key = denoiser_key(separate=location.denoiser is not None)
    location = location.of_denoiser
    facts = location.facts
    named = flavour_of(cached_hub_id(location.name) or (location.name if location.path is None else None), flavours)
    if facts is None:
        return Recognised(flavours=())
    if named is not None:  # a mismatch was already reported with the config
        return Recognised(flavours=(named,))
    fitting = [flavour for flavour in flavours.values() if _fits(flavour, facts)]
    names = tuple(flavour.name for flavour in fitting)
    if chosen.name not in names:
        said = ", ".join(f"{key} {value}" for key, value in facts.items())
        whose = f"flavour {' or '.join(map(repr, names))}" if names else f"no flavour of {chosen.family!r}"
        found = f"model {location.name!r} has the weights of {whose} ({said})"
        note = _allowed_or_raise(found, chosen, fitting, key=key, allowed=allowed, error=ModelError)
        return Recognised(flavours=names, notes=(note,))
    return Recognised(flavours=names, notes=tuple(_doubts(location, facts, chosen, fitting)))


def likely_flavours(location: ModelLocation, flavours: Flavours) -> tuple[str, ...]:
    """Return the flavours that weights may belong to, by the facts in their files, then by what names speak of."""
    fitting = [flavour for flavour in flavours.values() if _fits(flavour, location.facts or {})]
    for text in (PurePath(location.name).name, *location.origins):
        if (spoken_of := _spoken_of(text, fitting)) is not None:
            return (spoken_of,)
    return tuple(flavour.name for flavour in fitting)


def _fits(flavour: type[ModelFlavour], facts: Mapping[str, str]) -> bool:
    """Return whether no known fact contradicts the flavour; unknown facts contradict nothing."""
    return all(facts[key] in values for key, values in flavour.weights.items() if key in facts)


def _doubts(
    location: ModelLocation, facts: Mapping[str, str], chosen: ModelFlavour, fitting: Iterable[type[ModelFlavour]]
) -> Iterable[str]:
    """Yield at most one note: the name suggests another flavour, or nothing tells the flavour."""
    for text in (PurePath(location.name).name, *location.origins):
        spoken_of = _spoken_of(text, fitting)
        if spoken_of == chosen.name:
            return
        if spoken_of is not None:
            yield (
                f"model {location.name!r}: the weights may belong to flavour {spoken_of!r}, as the name {text!r} "
                f"suggests and no file tells; they are trained as {chosen.name!r}"
            )
            return
    unknown = [key for key in chosen.weights if key not in facts]
    if unknown:
        yield (
            f"model {location.name!r} does not say which flavour its weights are (unknown: {', '.join(unknown)}); they "
            f"are treated as {chosen.name!r}"
        )


def _spoken_of(text: str, flavours: Iterable[type[ModelFlavour]]) -> str | None:
    """Return the flavour whose hub name has all its words in a text, the one with most words first; else None."""
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
    key: str,
    allowed: bool,
    error: type[ConfigError] | type[ModelError],
) -> str:
    """Return the note if other weights are allowed, else raise the error with every way out."""
    bases = [flavour.distilled_from for flavour in fitting]
    collapse = (
        f"; these are step-distilled, and training such a model makes its images collapse: train {bases[0]} instead"
        if bases and all(bases)
        else ""
    )
    if allowed:
        return f"{found}; they are trained as {chosen.name!r} because allow_other_weights is on{collapse}"
    names = [flavour.name for flavour in fitting]
    ways = [
        f'to train {chosen.name}, write "{key}": "{chosen.hub_id}" or leave it out',
        *([f'to train these weights, write "model_flavour": "{names[0]}"'] if names else []),
        f'to train {chosen.name} on these weights anyway, write "allow_other_weights": true',
    ]
    if len(names) > 1:
        ways[1] += f" (or {first_few(names[1:])})"
    raise error(f"{found}, but model_flavour is {chosen.name!r}{collapse}\nhint: {'; '.join(ways)}")
