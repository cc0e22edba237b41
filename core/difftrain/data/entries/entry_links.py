"""Ids of dataset entries, the names by which entries refer to each other, and cache folders of their own. No IO."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from difftrain.config.messages import nearest
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.data.entries.data_plan import DatasetPlan
from difftrain.data.entries.text_entries import TextEntries

LONGEST_ID = 200
"""Bytes of each part of an id between slashes; file systems allow 255, and some of them are ours."""


def check_ids(config: RunConfig, datasets: Sequence[DatasetConfig], problems: Problems) -> None:
    for name, count in Counter(entry.id for entry in datasets).items():
        if count > 1:
            problems.add(
                f"{config.data_backend_config}: dataset id {name!r} is used by {count} datasets; every id must be "
                "unique"
            )
        # Path drops "." and empty parts, so two such ids could share a folder.
        parts = name.split("/")
        too_long = any(len(part.encode("utf-8", "surrogatepass")) > LONGEST_ID for part in parts)
        if {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable() or too_long:
            problems.add(
                f"{config.data_backend_config}: dataset id {name!r} cannot be used as a cache folder\n"
                'hint: use letters, digits, "-" and "_", as in "my-photos"'
            )


def check_names(entry: DatasetConfig, by_id: Mapping[str, DatasetConfig], problems: Problems) -> None:
    """Check that the entries named by this one exist and are of the right kind."""
    who = f"dataset {entry.id!r}: "
    for name, count in Counter(entry.conditioning_data).items():
        if name not in by_id:
            guess = nearest(name, by_id)
            advice = f"did you mean {guess!r}?" if guess else f"enabled datasets: {', '.join(by_id)}"
            problems.add(f"{who}conditioning_data names no enabled dataset {name!r}; {advice}")
        elif not by_id[name].is_reference:
            problems.add(
                f"{who}conditioning_data names {name!r}, which is no reference set\n"
                f"hint: give {name!r} a conditioning_type"
            )
        if count > 1:
            problems.add(f"{who}conditioning_data names {name!r} {count} times")
    source = entry.source_dataset_id
    if source is not None and source not in by_id:
        problems.add(f"{who}source_dataset_id names no enabled dataset {source!r}")
    elif source is not None and entry.id not in by_id[source].conditioning_data:
        problems.add(
            f"{who}source_dataset_id names {source!r}, which does not name this set in its conditioning_data\n"
            "hint: a reference follows the target set that names it; leave source_dataset_id out, or name that set"
        )


def check_folders(plans: Sequence[DatasetPlan], texts: TextEntries, problems: Problems) -> None:
    """No two sets share a cache folder: clearing one would clear both, and the cause is a copied entry."""
    users: dict[str, list[str]] = {_absolute(texts.default_folder): ["the text embeddings"]}
    for name, text_folder in texts.folders.items():
        users.setdefault(_absolute(text_folder), []).append(f"the text embeddings of {name!r}")
    for plan in plans:
        users.setdefault(_absolute(plan.latents_folder), []).append(f"dataset {plan.id!r}")
    for folder, sharing in users.items():
        names = list(dict.fromkeys(sharing))
        if len(names) > 1:
            problems.add(
                f"{' and '.join(names)} share one cache folder {folder}\n"
                "hint: give each its own cache_dir_vae, or cache_dir on a text_embeds dataset, or leave it out"
            )


def _absolute(path: Path) -> str:
    return os.path.abspath(path.expanduser())  # noqa: PTH100 - Path has no way to drop ".." without reading links
