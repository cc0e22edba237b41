"""The keys of the block ``huggingface``, and how blocks inside a dataset entry are parsed. No IO."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from difftrain.config.options import Options
from difftrain.config.problems import Problems
from difftrain.config.section import parse_options
from difftrain.data.tables.row_filter import FilterOptions, one_or_many

_COMPOSITE, _FILTER = "composite_image_config: ", "filter_func: "
OptionsT = TypeVar("OptionsT", bound=Options)


class CompositeOptions(Options):
    """The keys of ``composite_image_config``."""

    enabled: bool = False
    """Take one panel of an image that is several images side by side."""
    image_count: int = Field(1, ge=1, le=100)
    """Number of panels, all of one width."""
    select_index: int = Field(0, ge=0)
    """The panel to use, from 0 at the left."""

    @model_validator(mode="after")
    def _panel_exists(self) -> Self:
        if self.enabled and self.select_index >= self.image_count:
            raise ValueError(
                f"select_index {self.select_index} must be below image_count {self.image_count}; panels count from 0"
            )
        return self


class SetOptions(Options):
    """The keys of ``huggingface``. Columns may be dotted paths with list indexes, such as ``texts.captions.0``."""

    dataset_name: str | None = None
    """As beside the block."""
    split: str | None = None
    """As beside the block."""
    revision: str | None = None
    """As beside the block."""
    streaming: bool | None = None
    """As beside the block."""
    image_column: str = "image"
    """Column with the images: files as bytes, or paths of files."""
    caption_column: tuple[str, ...] = Field((), max_length=20)
    """Column with a caption or a list of captions, or a list of such columns, whose texts are all captions; default:
    the first that exists of caption, text, prompt."""
    fallback_caption_column: str | None = None
    """Column used where caption_column is empty."""
    description_column: str | None = None
    """Column used where these two are empty."""
    width_column: str = "width"
    """Column with the width in pixels, for filter_func."""
    height_column: str = "height"
    """Column with the height in pixels, for filter_func."""
    composite_image_config: dict[str, Any] = {}
    """A block: use one panel of images that are several images side by side."""
    filter_func: dict[str, Any] = {}
    """A block: use only some rows."""

    @field_validator("caption_column", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return one_or_many(value)

    @model_validator(mode="after")
    def _blocks_are_right(self) -> Self:
        problems = Problems()
        parse_options(CompositeOptions, self.composite_image_config, prefix=_COMPOSITE, problems=problems)
        parse_options(FilterOptions, self.filter_func, prefix=_FILTER, problems=problems)
        if problems.texts:
            raise ValueError("; ".join(problems.texts))
        return self

    @property
    def composite(self) -> CompositeOptions:
        return parse_block(CompositeOptions, self.composite_image_config, _COMPOSITE)

    @property
    def filter(self) -> FilterOptions:
        return parse_block(FilterOptions, self.filter_func, _FILTER)


def parse_block(cls: type[OptionsT], values: Mapping[str, Any], prefix: str) -> OptionsT:
    """Return the options of a block inside a dataset entry.

    Raises:
        ValueError: If any is wrong; names all.
    """
    problems = Problems()
    options = parse_options(cls, values, prefix=prefix, problems=problems)
    if options is None:
        raise ValueError("; ".join(problems.texts))
    return options


def need_pyarrow(what: str) -> None:
    """Refuse what needs the extra ``hf`` if that is not installed.

    Raises:
        ValueError: If pyarrow is missing; names the command that installs it.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{what} needs pyarrow, which is not installed\nhint: pip install 'difftrain[hf]'")
