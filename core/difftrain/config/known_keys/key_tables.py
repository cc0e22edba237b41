"""What the tables of known keys are made of, and when a value asks for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

Values = tuple[object, ...]
ZERO_ASKS = frozenset({"max_upscale_threshold"})
"""Keys whose 0 is a limit, and not nothing."""


@dataclass(frozen=True, slots=True)
class Idle:
    """A key that has no effect here."""

    reason: str
    usual: Values = ()
    """What it stands at in files that export every option: said in one note for all such keys."""


@dataclass(frozen=True, kw_only=True)
class KnownKeys:
    """Keys that no options class has, each in one of the tables."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """Another name of a key."""
    switches: Mapping[str, tuple[str, object]] = field(default_factory=dict)
    """A true-or-false key that others write for what is a value of another key here."""
    turns_off: Mapping[str, str] = field(default_factory=dict)
    """A true-or-false key that sets another key to 0, whatever is written there."""
    not_built: Mapping[str, Values] = field(default_factory=dict)
    """The key means something that is not built yet. These values ask for nothing, as do null, false and 0 where no
    limit is meant; any other is an error that says so."""
    no_effect: Mapping[str, Idle] = field(default_factory=dict)
    """The key is accepted whatever it says, with the reason."""

    def __contains__(self, key: str) -> bool:
        return any(key in getattr(self, table.name) for table in fields(self))

    def with_more(self, others: Iterable[KnownKeys]) -> KnownKeys:
        """These tables and those of ``others``; what stands here wins."""
        merged: dict[str, dict[str, object]] = {table.name: {} for table in fields(self)}
        for tables in (*others, self):
            for name, whole in merged.items():
                whole.update(getattr(tables, name))
        return KnownKeys(**merged)  # type: ignore[arg-type]  # each is what the field of its name holds

    def flags(self) -> tuple[str, ...]:
        """Keys that are flags by themselves; another name is one of its key's names instead."""
        return (*self.switches, *self.turns_off, *self.not_built, *self.no_effect)


def because(reason: str, **usual: object) -> dict[str, Idle]:
    """Keys that have no effect for one reason, each with its usual value, or a tuple of them."""
    return {key: Idle(reason, value if isinstance(value, tuple) else (value,)) for key, value in usual.items()}


def is_unset(value: object) -> bool:
    """Whether a value says that nothing is said: null, nothing between quotes, or ``none`` as a text."""
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))


def means_no_name(value: object) -> bool:
    """Whether a path or a name is turned off: unset, or false as others' switches write it."""
    return is_unset(value) or value is False or (isinstance(value, str) and value.strip().lower() == "false")


def asks_for_nothing(value: object, usual: Values = ()) -> bool:
    """Whether a value is nothing in any spelling, or a usual one: null, false, 0, ``"0.0"``, ``"None"``, ``[]``."""
    meant = _meant(value)
    # 0 and 0.0 are equal to false
    return meant is None or meant == False or any(meant == _meant(item) for item in usual)  # noqa: E712


def _meant(value: object) -> object:
    """A text as what it stands for; all that is empty as None."""
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
