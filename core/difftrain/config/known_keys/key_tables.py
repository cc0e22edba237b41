"""The types of the tables of known keys, and the rules for values that ask for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

Values = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Idle:
    """A key that has no effect here."""

    reason: str
    usual: Values = ()
    """Values it usually has in files that export every option; one note covers all such keys."""


@dataclass(frozen=True, kw_only=True)
class KnownKeys:
    """Keys that no options class has, each in one of the tables."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """Other names of our keys."""
    switches: Mapping[str, tuple[str, object]] = field(default_factory=dict)
    """True-or-false keys that set a value of another key here."""
    turns_off: Mapping[str, str] = field(default_factory=dict)
    """True-or-false keys that set another key to 0, whatever its value is."""
    not_built: Mapping[str, Values] = field(default_factory=dict)
    """Keys that ask for something not supported yet. These values ask for nothing, as do null, false and 0; any
    other value is an error that says so."""
    no_effect: Mapping[str, Idle] = field(default_factory=dict)
    """Keys that are accepted with any value, with the reason."""

    def __contains__(self, key: str) -> bool:
        return any(key in getattr(self, table.name) for table in fields(self))

    def with_more(self, others: Iterable[KnownKeys]) -> KnownKeys:
        """Return these tables merged with ``others``; entries of this one win."""
        merged: dict[str, dict[str, object]] = {table.name: {} for table in fields(self)}
        for tables in (*others, self):
            for name, whole in merged.items():
                whole.update(getattr(tables, name))
        return KnownKeys(**merged)  # type: ignore[arg-type]  # each is what the field of its name holds

    def flags(self) -> tuple[str, ...]:
        """Return the keys that are flags of their own; other names are aliases of their key's flag instead."""
        return (*self.switches, *self.turns_off, *self.not_built, *self.no_effect)


def because(reason: str, **usual: object) -> dict[str, Idle]:
    """Return keys that have no effect for one reason, each with its usual value or a tuple of usual values."""
    return {key: Idle(reason, value if isinstance(value, tuple) else (value,)) for key, value in usual.items()}


def is_unset(value: object) -> bool:
    """Return whether a value sets nothing: null, an empty text, or the text ``none``."""
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))


def means_no_name(value: object) -> bool:
    """Return whether a path or a name is turned off: unset, or false as other programs' switches write it."""
    return is_unset(value) or value is False or (isinstance(value, str) and value.strip().lower() == "false")


def asks_for_nothing(value: object, usual: Values = ()) -> bool:
    """Return whether a value is a usual one or empty in any spelling: null, false, 0, ``"0.0"``, ``"None"``, ``[]``."""
    meant = _meant(value)
    # 0 and 0.0 are equal to false
    return meant is None or meant == False or any(meant == _meant(item) for item in usual)  # noqa: E712


def _meant(value: object) -> object:
    """Convert a text to the value it spells; anything empty to None."""
    if isinstance(value, list | tuple | dict):
        return value or None
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if is_unset(text) or text in ("[]", "{}"):
        return None
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text
