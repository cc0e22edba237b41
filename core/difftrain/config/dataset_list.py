"""Checks the dataset list, entry by entry; every problem is collected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from difftrain.config.config_files import ConfigFile, Names, read_config_file
from difftrain.config.known_keys import DATASET_TABLES, INSTEAD, KEYS_OF_TYPE, NOT_BUILT_VALUES
from difftrain.config.messages import shown
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.config.section import Known, Section, check_section
from difftrain.config.user_values import coerce, fill_placeholders, plain_key
from difftrain.errors import ConfigError


def load_datasets(
    config: RunConfig, schema: type[DatasetConfig], names: Names, problems: Problems
) -> tuple[DatasetConfig, ...] | None:
    """Return the enabled entries of the dataset list.

    Returns:
        None after a problem: the entries together then have no reliable meaning.
    """
    before = len(problems)
    if "data_backend_config" in problems.wrong_keys:
        return None
    try:
        file = read_config_file(config.data_backend_config)
    except ConfigError as error:
        problems.add(f"data_backend_config: {error}")
        return None
    if not isinstance(file.content, list):
        problems.add(f"{file.path} must be a list of datasets [{{...}}, ...], got {shown(file.content)}")
        return None
    entries = []
    for index, raw in enumerate(file.content):
        if not isinstance(raw, dict):
            problems.add(f"{file.where(index)}a dataset must be an object {{...}}, got {shown(raw)}")
        elif not _is_disabled(raw):
            entries.append(_load_entry(file, index, raw, config, schema, names, problems))
    complete = [entry for entry in entries if entry is not None]
    return tuple(complete) if len(problems) == before else None


def _report_type(kind: str, where: str, dataset: str, problems: Problems) -> None:
    if kind in INSTEAD["type"]:
        problems.add(f"{where}type {kind!r}: {INSTEAD['type'][kind]}")
    else:
        problems.not_built(f"type {kind!r}", dataset)


def _is_disabled(raw: Mapping[str, Any]) -> bool:
    """Decide before anything else is read: a disabled entry may contain anything."""
    return any(
        DATASET_TABLES.renamed.get(plain_key(key), plain_key(key)) == "disabled" and coerce(bool, value) is True
        for key, value in raw.items()
    )


def _load_entry(
    file: ConfigFile,
    index: int,
    raw: dict[str, Any],
    config: RunConfig,
    schema: type[DatasetConfig],
    names: Names,
    problems: Problems,
) -> DatasetConfig | None:
    raw_keys = {plain_key(key): key for key in raw}
    plain = {plain_key(key): value for key, value in raw.items()}
    name = named if isinstance(named := plain.get("id"), str) else None
    if name is not None:
        with problems.catching(f"{file.where(index, raw_keys['id'])}id: "):
            name = str(fill_placeholders(name, placeholders(config, None)))
    who = f"dataset {name!r}: " if name else f"dataset {index + 1}: "

    def where(key: str) -> str:
        return file.where(index, raw_keys.get(key, key)) + who

    values = plain
    unbuilt_type = values.get("type") in NOT_BUILT_VALUES["type"] and values["type"] not in names.get("type", ())
    if unbuilt_type:
        _report_type(values["type"], where("type"), name or str(index + 1), problems)
        redundant = ("type", "caption_strategy", *KEYS_OF_TYPE.get(values["type"], ()))
        values = {key: value for key, value in values.items() if key not in redundant}
    section = Section(
        values=values,
        where=where,
        dataset=name or str(index + 1),
        placeholders=placeholders(config, name),
    )
    entry = check_section(section, schema, DATASET_TABLES, names, problems)
    if entry is not None and not entry.crop:
        for key in ("crop_style", "crop_aspect", "crop_aspect_buckets"):
            if key in entry.model_fields_set:
                problems.note(f"{who}{key}: no effect, crop is false")
    return entry


def placeholders(config: RunConfig, dataset: str | None) -> Known:
    """Return the values of placeholders in a dataset entry and the blocks inside it.

    Args:
        dataset: Id of the entry; None if it has none.
    """
    return {
        "model_family": config.model_family,
        "model_flavour": config.model_flavour,
        "id": dataset,
        "output_dir": str(config.output_dir),
    }
