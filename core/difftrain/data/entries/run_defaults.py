"""What a dataset entry leaves to the run: a value of its own wins. No IO."""

from __future__ import annotations

from typing import Any

from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig

_IN_ITS_UNIT = ("minimum_image_size", "maximum_image_size", "target_downsample_size")
"""Keys whose unit is set by resolution_type."""
_OF_CAPTIONS = ("instance_prompt", "prepend_instance_prompt")
_PROMPT = "instanceprompt"


def with_run_defaults(config: RunConfig, entry: DatasetConfig, problems: Problems) -> DatasetConfig:
    """Return an entry with the run's values of the keys that it does not set.

    A reference set has captions only if it says so itself.
    """
    filled: dict[str, Any] = {}
    for key in ("resolution", "resolution_type", "max_upscale_threshold"):
        if getattr(entry, key) is None:
            filled[key] = getattr(config, key)
    filled |= _sizes(config, entry, problems)
    if not entry.is_reference:
        if "caption_strategy" not in entry.model_fields_set:
            filled["caption_strategy"] = _PROMPT if config.only_instance_prompt else config.caption_strategy
        elif config.only_instance_prompt and entry.caption_strategy not in (None, _PROMPT):
            problems.note(
                f"dataset {entry.id!r}: keeps its own caption_strategy {entry.caption_strategy}; only_instance_prompt "
                "of the run is for datasets that set none"
            )
        if not entry.caption_shuffle:
            filled["caption_shuffle"] = config.caption_shuffle
        for key in _OF_CAPTIONS:
            if getattr(config, key) and (key not in entry.model_fields_set or getattr(entry, key) is None):
                filled[key] = getattr(config, key)
    columns = {"caption_column": config.parquet_caption_column, "filename_column": config.parquet_filename_column}
    wanted = {key: name for key, name in columns.items() if name is not None}
    if wanted:
        filled["parquet"] = wanted | getattr(entry, "parquet", {})
    # keys of plugins that are off are in no schema
    return entry.model_copy(update={key: value for key, value in filled.items() if key in type(entry).model_fields})


def _sizes(config: RunConfig, entry: DatasetConfig, problems: Problems) -> dict[str, float]:
    """Return the run's size limits, unless the entry measures in another unit."""
    given = {key: getattr(config, key) for key in _IN_ITS_UNIT if getattr(config, key) is not None}
    filled = {key: value for key, value in given.items() if getattr(entry, key) is None}
    own_type = entry.resolution_type or config.resolution_type
    if filled and (own_type == "area") != (config.resolution_type == "area"):
        for key, value in filled.items():
            problems.note(
                f"dataset {entry.id!r}: {key} {value:g} of the run is not used here: it is meant with resolution_type "
                f"{config.resolution_type}, and this dataset has {own_type}"
            )
        return {}
    return filled
