"""Sorts the keys of one section: keys of the schema, keys of the tables, unknown keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from difftrain.config.known_keys import KnownKeys, asks_for_nothing, is_unset
from difftrain.config.messages import shown, unknown_key
from difftrain.config.options import Options
from difftrain.config.problems import Problems
from difftrain.config.user_values import coerce

SINGLE_REASONS = 8
"""Up to this many idle keys with usual values are noted by reason; more mean an exported file, which gets one note."""


@dataclass(frozen=True, kw_only=True)
class KeySorter:
    """The known keys of a section, and which of its keys have no effect."""

    schema: type[Options]
    tables: KnownKeys
    where: Callable[[str], str]
    dataset: str | None
    _idle: dict[str, str] = field(default_factory=dict)
    """Reasons by key, for keys without effect that have their usual values."""
    _ignored: dict[str, str] = field(default_factory=dict)
    """Reasons by key, for keys without effect that ask for something."""
    _neutral: list[str] = field(default_factory=list)
    """Keys of unsupported features whose values do not ask for them."""

    def take(self, values: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
        """Return the keys that the schema has; accept or report the others."""
        taken: dict[str, Any] = {}
        for raw, value in values.items():
            key = self.tables.renamed.get(raw, raw)
            if key in self.schema.model_fields:
                self._keep(taken, raw, key, value, problems)
            elif key in self.tables.switches:
                other, meant = self.tables.switches[key]
                if self._is_on(key, value, problems):
                    self._keep(taken, raw, other, meant, problems)
            elif key in self.tables.turns_off:
                self._is_on(key, value, problems)
            elif key in self.tables.not_built:
                self._examine(key, value, problems)
            elif key in self.tables.no_effect:
                idle = self.tables.no_effect[key]
                (self._idle if asks_for_nothing(value, idle.usual) else self._ignored)[key] = idle.reason
            else:
                problems.add(self.where(raw) + unknown_key(raw, [*self.schema.model_fields, *self.tables.renamed]))
        for switch, other in self.tables.turns_off.items():
            if switch not in self.schema.model_fields and coerce(bool, values.get(switch)) is True:
                taken[other] = 0
        return taken

    def tell(self, problems: Problems) -> None:
        """Add one note for each reason, or one for all keys that every exported file has."""
        shown = dict(self._ignored)
        if len(self._idle) <= SINGLE_REASONS:
            shown |= self._idle
        else:
            listed = sorted([*self._idle, *self._neutral])
            who = f"dataset {self.dataset!r}: " if self.dataset is not None else ""
            problems.note(f"{who}{len(listed)} keys ask for nothing and have no effect: {', '.join(listed)}")
        by_reason: dict[str, list[str]] = {}
        for key, reason in shown.items():
            by_reason.setdefault(reason, []).append(key)
        for reason, keys in by_reason.items():
            problems.note(f"{', '.join(keys)}: no effect, {reason}")

    def _keep(self, taken: dict[str, Any], raw: str, key: str, value: object, problems: Problems) -> None:
        if key in taken and (is_unset(value) or value is False):
            return
        if key in taken and taken[key] != value and not (is_unset(taken[key]) or taken[key] is False):
            problems.add(f"{self.where(raw)}{key} is given twice, as {shown(taken[key])} and {shown(value)}")
        taken[key] = value

    def _is_on(self, key: str, value: object, problems: Problems) -> bool:
        on = coerce(bool, value)
        if not isinstance(on, bool) and not asks_for_nothing(value):
            problems.add(f"{self.where(key)}{key} must be true or false, got {shown(value)}")
        return on is True

    def _examine(self, key: str, value: object, problems: Problems) -> None:
        if asks_for_nothing(value, self.tables.not_built[key]):
            self._neutral.append(key)
        else:
            problems.not_built(f"{key} = {value if isinstance(value, str) else shown(value)}", self.dataset)
