"""From dataset entries to a plan: every name becomes an object, every contradiction a problem. No IO."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from difftrain.config.known_keys import NOT_BUILT_VALUES
from difftrain.config.messages import explain, nearest
from difftrain.config.options import Options
from difftrain.config.problems import Problems
from difftrain.config.run_options import OptionsT
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.contracts import CaptionSource, DataSource, Pairing
from difftrain.data.entries.data_plan import DataPlan, DatasetPlan
from difftrain.data.entries.generator_entries import plan_generators
from difftrain.data.entries.held_out import choose_held_out
from difftrain.data.entries.reference_rules import check_references, choose_row_sets, chosen_flavour
from difftrain.data.entries.text_entries import text_folder_of
from difftrain.data.entries.written_folders import planned_folders
from difftrain.errors import PluginError
from difftrain.plugins.registry import EXTENSIONS, Registry
from difftrain.types import GeometryRules

LONGEST_ID = 200
"""Bytes of a dataset's id between slashes; disks take 255, and some of them are ours."""
LARGEST_MEGAPIXELS = 100.0
"""A resolution beyond this is surely a mistake: pixels given as megapixels, say."""


def plan_datasets(
    config: RunConfig, datasets: Sequence[DatasetConfig], registry: Registry, problems: Problems
) -> DataPlan | None:
    """The plan of all datasets, or None after a problem; notes are kept in ``problems`` too."""
    before = len(problems)
    _check_ids(config, datasets, problems)
    images = [entry for entry in datasets if entry.dataset_type != "text_embeds"]
    rows = choose_row_sets(images, registry)
    # to all that follows these are plain target sets
    images = [entry.model_copy(update={"conditioning_type": None}) if entry.id in rows else entry for entry in images]
    held_out = choose_held_out(config, images, problems)
    images = _without_unused(images, held_out.unused, problems)
    plans = []
    for entry in images:
        planner = _DatasetPlanner(
            config=config,
            entry=entry,
            row_pairing=rows.get(entry.id),
            held_out=entry.id in held_out.ids,
            registry=registry,
            problems=problems,
        )
        plan = planner.plan()
        if plan is not None:
            plans.append(plan)
    text_folder = text_folder_of(config, datasets, problems)
    _check_folders(plans, text_folder, problems)
    check_references(config, images, registry, problems)
    if len(problems) > before:
        return None
    flavour = chosen_flavour(config, registry)
    return DataPlan(
        datasets=tuple(plans),
        combined=config.conditioning_multidataset_sampling == "combined",
        references_fit_target=flavour is not None and flavour.references_fit_target,
        index_path=config.cache_dir / "index.sqlite",
        text_folder=text_folder,
        written_folders=planned_folders(config, datasets, plans, text_folder, registry),
        seed=config.seed,
    )


@dataclass(frozen=True, kw_only=True)
class _DatasetPlanner:
    """One entry of images on its way to a plan."""

    config: RunConfig
    entry: DatasetConfig
    row_pairing: str | None
    """How the references of its rows follow; None where its source brings none, or none is known."""
    held_out: bool
    registry: Registry
    problems: Problems

    @property
    def who(self) -> str:
        return f"dataset {self.entry.id!r}: "

    def plan(self) -> DatasetPlan | None:
        """The plan, or None after a problem."""
        before = len(self.problems)
        entry = self._with_defaults()
        source: DataSource | None = self._build("data source", entry.type)
        captions: CaptionSource | None = self._build("caption source", entry.caption_strategy)
        pairing = self._pairing(entry)
        row_pairing: Pairing | None = self._build("pairing", self.row_pairing)
        rules = self._rules(entry)
        generators = plan_generators(self.config, entry, self.registry, self.problems)
        family_options = self._asked("family", self.config.model_family)
        loss_options = self._asked("loss", self.config.loss_type)
        self._note_unused_keys(source, captions, pairing, row_pairing, family_options, loss_options)
        if len(self.problems) > before or source is None:
            return None
        return DatasetPlan(
            config=entry,
            source=source,
            captions=captions,
            rules=rules,
            pairing=pairing,
            row_pairing=row_pairing,
            takes_source_captions="caption_strategy" not in self.entry.model_fields_set and not entry.is_reference,
            references=entry.conditioning_data,
            generators=generators,
            latents_folder=entry.cache_dir_vae or self.config.cache_dir / "vae" / entry.id,
            family_options=family_options,
            loss_options=loss_options,
            held_out=self.held_out,
        )

    def _with_defaults(self) -> DatasetConfig:
        """The entry with what it leaves to the run; a reference set has captions only if it says so."""
        entry, config = self.entry, self.config
        filled: dict[str, Any] = {}
        for key in ("resolution", "resolution_type", "minimum_image_size"):
            if getattr(entry, key) is None:
                filled[key] = getattr(config, key)
        own_type = entry.resolution_type or config.resolution_type
        if filled.get("minimum_image_size") is not None and (own_type == "area") != (config.resolution_type == "area"):
            del filled["minimum_image_size"]
            self.problems.note(
                f"{self.who}minimum_image_size {config.minimum_image_size:g} of the run is not used here: it is meant "
                f"with resolution_type {config.resolution_type}, and this dataset has {own_type}"
            )
        if "caption_strategy" not in entry.model_fields_set and not entry.is_reference:
            filled["caption_strategy"] = config.caption_strategy
        return entry.model_copy(update=filled)

    def _build(self, kind: str, name: str | None) -> Any:
        """The entry's object of a kind; None when it names none, or after a problem."""
        if name is None:
            return None
        key = EXTENSIONS[kind].key
        try:
            found = self.registry.find(kind, name)
        except PluginError as error:
            if name in NOT_BUILT_VALUES.get(key, ()):
                self.problems.not_built(f"{key} {name!r}", self.entry.id)
            else:
                self.problems.add(f"{self.who}{key}: {error}")
            return None
        return self._built(found, f"{key} {name!r}")

    def _asked(self, kind: str, name: str) -> Options | None:
        """What the run's family or loss asks of a target set; a reference set has no samples of its own."""
        chosen = self.registry.all(kind).get(name)  # a name that is none is told of the run
        if chosen is None or chosen.dataset_options is None or self.entry.is_reference:
            return None
        return self._built(chosen.dataset_options, f"{EXTENSIONS[kind].key} {name!r}")

    def _built(self, cls: type[OptionsT], asked_by: str) -> OptionsT | None:
        """The entry's options of a class; None after a problem."""
        try:
            return self.entry.build(cls)
        except ValidationError as error:
            for sentence in explain(error, self.entry.model_dump(mode="json")).values():
                self.problems.add(f"{self.who}{sentence} (asked for by {asked_by})")
            return None

    def _pairing(self, entry: DatasetConfig) -> Pairing | None:
        if not entry.is_reference:
            return None
        if entry.conditioning_type is None:
            known = ", ".join(sorted(self.registry.all("pairing")))
            self.problems.add(f"{self.who}a reference set needs a conditioning_type; known: {known}")
            return None
        for key in ("conditioning_data", "conditioning"):
            if getattr(entry, key):
                self.problems.add(f"{self.who}{key} belongs on a target set, and this is a reference set")
        pairing: Pairing | None = self._build("pairing", entry.conditioning_type)
        return pairing

    def _rules(self, entry: DatasetConfig) -> GeometryRules:
        assert entry.resolution is not None, "filled in from the run"
        assert entry.resolution_type is not None, "filled in from the run"
        self._check_sizes(entry, entry.resolution)
        return GeometryRules(
            resolution=entry.resolution,
            resolution_type=entry.resolution_type,
            alignment=self.config.aspect_bucket_alignment,
            crop=entry.crop,
            crop_style=entry.crop_style,
            crop_aspect=entry.crop_aspect,
            crop_aspect_buckets=entry.crop_aspect_buckets,
            maximum_image_size=entry.maximum_image_size,
            target_downsample_size=entry.target_downsample_size,
        )

    def _check_sizes(self, entry: DatasetConfig, resolution: float) -> None:
        alignment = self.config.aspect_bucket_alignment
        if entry.resolution_type == "area" and resolution > LARGEST_MEGAPIXELS:
            self.problems.add(
                f"{self.who}resolution {resolution:g} with resolution_type area is {resolution:g} megapixels; "
                "for pixels set resolution_type = pixel_area"
            )
        if entry.resolution_type != "area" and resolution**2 / 1e6 > LARGEST_MEGAPIXELS:
            self.problems.add(
                f"{self.who}resolution {resolution:g} with resolution_type {entry.resolution_type} is "
                f"{resolution**2 / 1e6:g} megapixels or more; at most {LARGEST_MEGAPIXELS:g} are possible"
            )
        if entry.resolution_type != "area" and resolution < alignment:
            self.problems.add(
                f"{self.who}resolution {resolution:g} with resolution_type {entry.resolution_type} is less than one "
                f"step of {alignment} px; for megapixels set resolution_type = area"
            )
        if (entry.maximum_image_size is None) != (entry.target_downsample_size is None):
            self.problems.add(f"{self.who}maximum_image_size and target_downsample_size go together; one is missing")
        for low, high in (
            ("target_downsample_size", "maximum_image_size"),
            ("minimum_image_size", "maximum_image_size"),
            ("minimum_aspect_ratio", "maximum_aspect_ratio"),
        ):
            lower, upper = getattr(entry, low), getattr(entry, high)
            if lower is not None and upper is not None and lower > upper:
                self.problems.add(f"{self.who}{low} {lower:g} is above {high} {upper:g}")
        if entry.crop and entry.crop_aspect == "closest" and not entry.crop_aspect_buckets:
            self.problems.add(f"{self.who}crop_aspect = closest needs crop_aspect_buckets, such as [0.75, 1.0, 1.5]")

    def _note_unused_keys(self, *chosen: Options | None) -> None:
        used = {key for options in chosen if options is not None for key in type(options).model_fields}
        for key in sorted(self.entry.model_fields_set - set(DatasetConfig.model_fields) - used):
            self.problems.note(f"{self.who}{key}: no effect{self._why_unused(key)}")
        if self.entry.cache_dir is not None:
            self.problems.note(f"{self.who}cache_dir: no effect here; latents go to cache_dir_vae")

    def _why_unused(self, key: str) -> str:
        owners = [(kind, cls) for kind, cls, asked in self.registry.asking_samples() if key in asked.model_fields]
        chosen = {"family": self.config.model_family, "loss": self.config.loss_type}
        if any(cls.name == chosen[kind] for kind, cls in owners):
            return " on a reference set; it belongs on the target set"
        if owners:
            named = " or ".join(f"{kind} {cls.name!r}" for kind, cls in owners)
            return f", it is an option of {named}, which this run does not use"
        return " with the type, captions and pairing of this dataset"


def _check_ids(config: RunConfig, datasets: Sequence[DatasetConfig], problems: Problems) -> None:
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


def _without_unused(
    images: Sequence[DatasetConfig], unused: Collection[str], problems: Problems
) -> list[DatasetConfig]:
    """Without these target sets, and without the reference sets that no other target set names."""
    by_id = {entry.id: entry for entry in images}
    named = {name for entry in images for name in entry.conditioning_data}
    wanted = {name for entry in images if entry.id not in unused for name in entry.conditioning_data}
    for entry in images:
        _check_names(entry, by_id, problems)
        if entry.is_reference and entry.id not in named:
            problems.note(f"dataset {entry.id!r}: not used, no target set names it in conditioning_data")
    return [entry for entry in images if (entry.id in wanted if entry.is_reference else entry.id not in unused)]


def _check_names(entry: DatasetConfig, by_id: Mapping[str, DatasetConfig], problems: Problems) -> None:
    """The other entries that an entry names are there, and are what they are named as."""
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


def _check_folders(plans: Sequence[DatasetPlan], text_folder: Path, problems: Problems) -> None:
    """Two sets in one folder is a mistake of copying an entry: clearing one would clear both."""
    users: dict[str, list[str]] = {_absolute(text_folder): ["the text embeddings"]}
    for plan in plans:
        users.setdefault(_absolute(plan.latents_folder), []).append(f"dataset {plan.id!r}")
    for folder, sharing in users.items():
        names = list(dict.fromkeys(sharing))
        if len(names) > 1:
            problems.add(
                f"{' and '.join(names)} share one cache folder {folder}\n"
                "hint: give each its own cache_dir_vae, or leave it out"
            )


def _absolute(path: Path) -> str:
    return os.path.abspath(path.expanduser())  # noqa: PTH100 - Path has no way to drop ".." without reading links
