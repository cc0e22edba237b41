"""Finds entries that bring references in their own rows, checks that the model and the sampling mode can use all
references, and that reference sets ask for nothing that only target sets can do. No IO."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from difftrain.config.dataset_options import KEYS_OF_TRAINING
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.contracts import ModelFlavour
from difftrain.data.entries.generator_entries import DEFAULT_PAIRING
from difftrain.plugins.registry import Registry


def choose_row_sets(images: Sequence[DatasetConfig], registry: Registry) -> dict[str, str | None]:
    """Return target sets whose images may bring references, by id, with the pairing that the entry names, if any.

    An entry of such a data source is a reference set if it says so, or if a target set names it as one.
    """
    sources = registry.all("data source")
    named = {name for entry in images for name in entry.conditioning_data}
    default = DEFAULT_PAIRING if DEFAULT_PAIRING in registry.all("pairing") else None
    return {
        entry.id: entry.conditioning_type or default
        for entry in images
        if entry.type in sources and sources[entry.type].gives_references
        if entry.dataset_type != "conditioning" and entry.id not in named
    }


def check_references(
    config: RunConfig,
    images: Sequence[DatasetConfig],
    row_sets: Collection[str],
    registry: Registry,
    problems: Problems,
) -> None:
    """Report references that would never be used, and more or fewer references than the flavour takes.

    Args:
        images: Enabled target sets and the reference sets that they name.
        row_sets: Ids of target sets whose rows may bring references; only their images tell whether they do.
    """
    if config.conditioning_multidataset_sampling == "combined":
        _check_captions(images, problems)
    _check_sampling(images, problems)
    _check_counts(config, images, registry, problems)
    _check_needed([entry for entry in images if entry.id not in row_sets], config, registry, problems)


def _check_sampling(images: Sequence[DatasetConfig], problems: Problems) -> None:
    """Check that reference sets ask for no sampling of their own; references are drawn with their targets."""
    for entry in images:
        if entry.is_reference and entry.max_num_samples is not None:
            problems.add(
                f"dataset {entry.id!r}: max_num_samples would never be used: this is a reference set, and its "
                "images are chosen by the target images\n"
                "hint: set max_num_samples only on the target set"
            )
        for key in (*KEYS_OF_TRAINING, "on_missing"):
            if entry.is_reference and getattr(entry, key) != type(entry).model_fields[key].default:
                problems.note(f"dataset {entry.id!r}: {key}: no effect on a reference set, only on its target set")


def _check_captions(images: Sequence[DatasetConfig], problems: Problems) -> None:
    for entry in images:
        captioned = []
        if entry.is_reference and entry.caption_strategy:
            captioned.append((f"caption_strategy {entry.caption_strategy!r}", 'set "caption_strategy": null'))
        for block in entry.conditioning:
            if block.get("captions"):
                captioned.append((f"captions on conditioning {block.get('type')!r}", "remove these captions"))
        for what, remedy in captioned:
            problems.add(
                f"dataset {entry.id!r}: {what} would never be used: conditioning_multidataset_sampling = combined "
                "shows all references of a sample at once and uses the target set's captions\n"
                f'hint: {remedy}, or set "conditioning_multidataset_sampling": "random"'
            )


def chosen_flavour(config: RunConfig, registry: Registry) -> type[ModelFlavour] | None:
    """Return the flavour to train; None for an unknown name, which is reported elsewhere."""
    name = config.model_flavour or registry.default_flavour(config.model_family)
    return registry.flavours(config.model_family).get(name or "")


def _check_needed(images: Sequence[DatasetConfig], config: RunConfig, registry: Registry, problems: Problems) -> None:
    flavour = chosen_flavour(config, registry)
    if flavour is None or not flavour.needs_reference:
        return
    others = registry.flavours(config.model_family).values()
    able = ", ".join(sorted(other.name for other in others if not other.needs_reference))
    switch = f", or set model_flavour; those that train without: {able}" if able else ""
    for entry in images:
        if not (entry.is_reference or entry.conditioning_data or entry.conditioning):
            problems.add(
                f"dataset {entry.id!r}: has no references, but flavour {flavour.name!r} of {config.model_family!r} "
                "needs one for every image\n"
                "hint: name a reference set in conditioning_data, or generate references with conditioning"
                f"{switch}"
            )


def _check_counts(config: RunConfig, images: Sequence[DatasetConfig], registry: Registry, problems: Problems) -> None:
    flavours, flavour = registry.flavours(config.model_family), chosen_flavour(config, registry)
    if flavour is None:
        return
    name = flavour.name
    for entry in images:
        total = len(entry.conditioning_data) + len(entry.conditioning)
        at_once = total if config.conditioning_multidataset_sampling == "combined" else min(total, 1)
        if at_once <= flavour.max_references:
            continue
        who = f"dataset {entry.id!r}: "
        if flavour.max_references == 0:
            able = sorted(other.name for other in flavours.values() if other.max_references)
            problems.add(
                f"{who}has references, but flavour {name!r} of {config.model_family!r} takes none\n"
                f"hint: set model_flavour; those that take references: {', '.join(able) or 'none is installed'}"
            )
        else:
            problems.add(
                f"{who}combines {at_once} references per sample, but flavour {name!r} of {config.model_family!r} "
                f"takes at most {flavour.max_references}\n"
                "hint: name fewer sets, or set conditioning_multidataset_sampling = random"
            )
