"""Columns as users name them, ``description.captions.0``: found in a schema, then in rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from difftrain.config.messages import nearest
from difftrain.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_DEEPEST = 4
"""Levels of nested columns that messages suggest."""


@dataclass(frozen=True, slots=True)
class Column:
    """A place in every row."""

    name: str
    """As the user wrote it."""
    top: str
    """The column of the file that holds it."""
    steps: tuple[str | int, ...] = ()
    """Names of fields and indexes of lists below that column."""

    def of(self, value: object) -> object:
        """Return what stands here in one value of the column :attr:`top`; None if the row has nothing there."""
        for step in self.steps:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int):
                value = value[step] if step < len(value) else None
            else:
                return None
        return value


def find_column(key: str, name: str, schema: pa.Schema) -> tuple[Column, pa.DataType]:
    """Return a column and the type of its values.

    Args:
        key: The option that names it, for the message.

    Raises:
        DataError: If there is none; names the nearest.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        top = ".".join(parts[:length])
        if top not in schema.names:
            continue
        found = _descend(schema.field(top).type, parts[length:])
        if found is not None:
            return Column(name, top, found[0]), found[1]
    known = [path for field in schema for path in _paths(field.name, field.type)]
    guess = nearest(name, known)
    advice = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(known)}"
    raise DataError(f"{key} {name!r} does not exist; {advice}")


def _descend(kind: pa.DataType, parts: list[str]) -> tuple[tuple[str | int, ...], pa.DataType] | None:
    """Return the steps to a nested value and its type; None if there is no such value."""
    steps: list[str | int] = []
    for part in parts:
        if has_fields(kind) and kind.get_field_index(part) >= 0:
            steps.append(part)
            kind = kind.field(part).type
        elif is_list(kind) and part.isdecimal():
            steps.append(int(part))
            kind = kind.value_type
        else:
            return None
    return tuple(steps), kind


def _paths(name: str, kind: Any, depth: int = 1) -> Iterator[str]:
    yield name
    if has_fields(kind) and depth < _DEEPEST:
        for index in range(kind.num_fields):
            field = kind.field(index)
            yield from _paths(f"{name}.{field.name}", field.type, depth + 1)


def has_fields(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Return whether values are texts, or lists of texts."""
    import pyarrow as pa

    if is_list(kind) or pa.types.is_dictionary(kind):
        return bool(is_text(kind.value_type))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def is_image(kind: pa.DataType) -> bool:
    """Return whether values can be image files: their bytes, their path, or both in one struct."""
    import pyarrow as pa

    if has_fields(kind):
        return bool(kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0)
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(binary or pa.types.is_string(kind) or pa.types.is_large_string(kind))
