"""The folders that runs write: files there are never data. No IO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.data.entries.data_plan import DatasetPlan
from difftrain.data.entries.generator_entries import plan_generators
from difftrain.plugins.registry import Registry


def planned_folders(
    config: RunConfig,
    datasets: Sequence[DatasetConfig],
    plans: Sequence[DatasetPlan],
    text_folder: Path,
    registry: Registry,
) -> dict[str, Path]:
    """Return all folders that a run file writes, by the name that messages use. No IO.

    Folders of entries that this run does not use count too: another run of the same files writes them.
    """
    others = {"output_dir": config.output_dir, "cache_dir": config.cache_dir, "text embeddings": text_folder}
    used = {plan.id for plan in plans}
    for entry in datasets:
        if entry.id in used:
            continue
        for folder in (entry.cache_dir_vae, entry.cache_dir):
            if folder is not None:
                others[f"cache of dataset {entry.id!r}"] = folder
        for generator in plan_generators(config, entry, registry, Problems()):
            others[f"{generator.id}: instance_data_dir"] = generator.folder
    return written_folders(plans, others)


def written_folders(datasets: Iterable[DatasetPlan], others: Mapping[str, Path]) -> dict[str, Path]:
    """Return the folders of :attr:`DataPlan.written_folders`: those of the datasets, and others by name."""
    folders = dict(others)
    for dataset in datasets:
        folders[f"dataset {dataset.id!r}: cache_dir_vae"] = dataset.latents_folder
        if dataset.text_folder is not None:
            folders[f"text embeddings of dataset {dataset.id!r}"] = dataset.text_folder
        folders |= {f"{generator.id}: instance_data_dir": generator.folder for generator in dataset.generators}
    return {name: folder.expanduser() for name, folder in folders.items()}
