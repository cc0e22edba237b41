"""Chooses rows by the values of their columns: the block ``filter_func``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from difftrain.config.options import Options
from difftrain.data.tables.columns import Column, find_column
from difftrain.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


class FilterOptions(Options):
    """The keys of ``filter_func``; a row must meet all of them."""

    collection: tuple[str, ...] = ()
    """Names, of which the column ``collection`` must hold one, or a list with one."""
    quality_column: str = "quality_assessment"
    """Column with the scores that quality_thresholds names."""
    quality_thresholds: dict[str, float] = {}
    """Smallest score by name: a field of quality_column, or a column of its own."""
    min_width: int | None = Field(None, ge=1)
    """Pixels, compared with width_column."""
    min_height: int | None = Field(None, ge=1)
    """Pixels, compared with height_column."""

    @field_validator("collection", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return one_or_many(value)


def one_or_many(value: object) -> object:
    """Return a text or a list of texts as a tuple; anything else unchanged, for validation to refuse."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


@dataclass(kw_only=True)
class RowFilter:
    """The conditions on the rows of one schema, and how many rows each has left out."""

    conditions: list[tuple[str, Column, Callable[[Any], bool]]] = field(default_factory=list)
    """What a row must meet, as messages say it."""
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def tops(self) -> set[str]:
        return {column.top for _, column, _ in self.conditions}

    def keeps(self, row: Mapping[str, Any]) -> bool:
        for meaning, column, is_met in self.conditions:
            if not is_met(column.of(row[column.top])):
                self.left_out[meaning] += 1
                return False
        return True


def row_filter(options: FilterOptions, schema: pa.Schema, *, width_column: str, height_column: str) -> RowFilter:
    """Return the filter of a set.

    Raises:
        DataError: If a column that it needs does not exist.
    """
    made = RowFilter()
    if options.collection:
        column, _ = find_column("filter_func: collection: column", "collection", schema)
        wanted = frozenset(options.collection)
        made.conditions.append((f"collection in {', '.join(options.collection)}", column, _one_of(wanted)))
    for name, least in options.quality_thresholds.items():
        column = _score_column(options.quality_column, name, schema)
        made.conditions.append((f"{column.name} at least {least:g}", column, _at_least(least)))
    for key, limit, name in (
        ("min_width", options.min_width, width_column),
        ("min_height", options.min_height, height_column),
    ):
        if limit is not None:
            try:
                column, _ = find_column(f"filter_func: {key}: column", name, schema)
            except DataError as error:
                hint = "hint: minimum_image_size of the dataset needs no column"
                raise DataError(f"{error}\n{hint}") from error
            made.conditions.append((f"{name} at least {limit}", column, _at_least(limit)))
    return made


def _score_column(parent: str, name: str, schema: pa.Schema) -> Column:
    if name in schema.names:
        return find_column("", name, schema)[0]
    return find_column("filter_func: quality_thresholds: column", f"{parent}.{name}", schema)[0]


def _one_of(wanted: frozenset[str]) -> Callable[[Any], bool]:
    """Return the condition that a value, or one of a list of values, is among those wanted; numbers as texts."""
    return lambda value: any(str(one) in wanted for one in (value if isinstance(value, list) else [value]))


def _at_least(limit: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and value >= limit
