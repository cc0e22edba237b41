"""Which linear layers of a model a ``lycoris_config`` adapts, and how. Pure, no torch.

The rules are those of the library, which a test compares: a module of a named class gives all linear layers in it; a
layer whose name matches a pattern is taken by itself; whichever comes first in the model decides.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from difftrain.config.messages import nearest
from difftrain.errors import ConfigError
from difftrain.model.lycoris.lycoris_file import Change, LycorisFile


@dataclass(frozen=True, slots=True)
class Part:
    """One module of a model."""

    name: str
    """Full name."""
    kind: str
    """Name of its class."""
    is_linear: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """One layer to adapt."""

    change: Change
    kind: str
    """The class or pattern of the file that names it, as the model calls it."""


def choose_modules(
    parts: Sequence[Part], file: LycorisFile, *, where: str, old_names: Mapping[str, str]
) -> dict[str, Chosen]:
    """Return the layers to adapt, by full name, in the model's order of what names them.

    Args:
        parts: All modules, in the model's order: each before those in it.
        where: Prefix of messages, such as ``lycoris_config config/lycoris.json``.
        old_names: Names that classes had in other versions of their library, with those of today. A class that the
            model has under its old name is not renamed.

    Raises:
        ConfigError: With every class and name of the file that fits no layer, and the nearest that does.
    """
    kinds = {part.kind for part in parts}
    today = {name: name if name in kinds else old_names.get(name, name) for name in file.classes}
    rules = _Rules(
        file=file, classes=frozenset(today.values()), by_class={today[name]: how for name, how in file.by_class.items()}
    )
    chosen: dict[str, Chosen] = {}
    for index, part in enumerate(parts):
        if rules.excludes(part):
            continue
        pattern = rules.pattern_of(part)
        if part.kind in rules.classes and pattern is None:
            for name, change in rules.layers_in(parts, index):
                chosen.setdefault(name, Chosen(change, part.kind))
        elif pattern is not None and part.is_linear:
            chosen.setdefault(part.name, Chosen(rules.change_by_name(part), pattern))
    problems = [*_classes_without_layers(parts, today, rules), *_names_without_layers(parts, rules)]
    if not chosen and not problems:
        problems.append("chooses no layer of this model; name classes in apply_preset.target_module")
    if problems:
        raise ConfigError(*(f"{where}: {text}" for text in problems))
    return chosen


@dataclass(frozen=True, kw_only=True)
class _Rules:
    file: LycorisFile
    classes: frozenset[str]
    """By their names of today."""
    by_class: Mapping[str, Change]

    def matches(self, pattern: str, name: str) -> bool:
        if name == pattern:
            return True
        return fnmatch.fnmatch(name, pattern) if self.file.glob else bool(re.match(pattern, name))

    def excludes(self, part: Part) -> bool:
        return bool(part.name) and any(self.matches(pattern, part.name) for pattern in self.file.excluded)

    def pattern_of(self, part: Part) -> str | None:
        return next((pattern for pattern in self.file.names if self.matches(pattern, part.name)), None)

    def layers_in(self, parts: Sequence[Part], index: int) -> list[tuple[str, Change]]:
        """Return the linear layers of a module with the change of the innermost class around each."""
        root = parts[index]
        inside = [part for part in parts[index:] if part is root or _is_in(part.name, root.name)]
        found, own = [], {root.name: self.by_class.get(root.kind, self.file.default)}
        for part in inside:
            if self.excludes(part):
                continue
            around = max((name for name in own if name == part.name or _is_in(part.name, name)), key=len)
            if part is not root and part.kind in self.by_class:
                own[part.name] = self.by_class[part.kind]
                around = part.name
            if part.is_linear:
                found.append((part.name, own[around]))
        return found

    def change_by_name(self, part: Part) -> Change:
        names = self.file.by_name
        exact = names.get(part.name)
        matching = (change for pattern, change in names.items() if self.matches(pattern, part.name))
        return exact or next(matching, None) or self.by_class.get(part.kind, self.file.default)


def _is_in(name: str, outer: str) -> bool:
    return not outer or name.startswith(f"{outer}.")


def _classes_without_layers(parts: Sequence[Part], today: Mapping[str, str], rules: _Rules) -> list[str]:
    holders = sorted({part.kind for index, part in enumerate(parts) if _holds_layer(parts, index)})
    wrong = []
    for asked, name in today.items():
        if name not in holders:
            guess = nearest(asked, holders)
            meant = f"did you mean {guess!r}? " if guess else ""
            key = "module_algo_map" if asked in rules.file.by_class else "target_module"
            wrong.append(
                f"apply_preset.{key}: no linear layer of this model is in a module of class {asked!r}; {meant}"
                f"classes: {', '.join(holders)}"
            )
    return wrong


def _holds_layer(parts: Sequence[Part], index: int) -> bool:
    root = parts[index]
    return any(part.is_linear for part in parts[index:] if part is root or _is_in(part.name, root.name))


def _names_without_layers(parts: Sequence[Part], rules: _Rules) -> list[str]:
    layers = [part.name for part in parts if part.is_linear]
    wrong = []
    for pattern in rules.file.names:
        if not any(rules.matches(pattern, name) for name in layers):
            guess = nearest(pattern, layers)
            meant = f"did you mean {guess!r}? " if guess else ""
            key = "name_algo_map" if pattern in rules.file.by_name else "target_name"
            kind = "use_fnmatch pattern" if rules.file.glob else "regular expression"
            wrong.append(
                f"apply_preset.{key}: no linear layer of this model has a name that fits the {kind} {pattern!r}; "
                f"{meant}a layer's name is, for example, {layers[0] if layers else '(there is none)'}"
            )
    return wrong
