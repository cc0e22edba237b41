"""From dataset entries to a data plan: every name becomes an object, every contradiction a problem. No IO."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from difftrain.config.known_keys import NOT_BUILT_VALUES, PLAIN_CROP_STYLES
from difftrain.config.messages import explain
from difftrain.config.options import Options
from difftrain.config.problems import Problems
from difftrain.config.run_options import OptionsT
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.contracts import CaptionSource, CropStyle, DataSource, Pairing
from difftrain.data.entries.caption_entries import plan_caption_edits
from difftrain.data.entries.data_plan import DataPlan, DatasetPlan
from difftrain.data.entries.entry_links import check_folders, check_ids, check_names
from difftrain.data.entries.generator_entries import plan_generators
from difftrain.data.entries.held_out import choose_held_out
from difftrain.data.entries.reference_rules import check_references, choose_row_sets, chosen_flavour
from difftrain.data.entries.run_defaults import with_run_defaults
from difftrain.data.entries.size_rules import size_rules
from difftrain.data.entries.text_entries import TextEntries, plan_text_entries
from difftrain.data.entries.training_schedule import check_training
from difftrain.data.entries.written_folders import planned_folders
from difftrain.errors import PluginError
from difftrain.plugins.registry import EXTENSIONS, Registry


def plan_datasets(
    config: RunConfig, datasets: Sequence[DatasetConfig], registry: Registry, problems: Problems
) -> DataPlan | None:
    """The plan of all datasets, or None after a problem; ``problems`` collects problems and notes."""
    before = len(problems)
    check_ids(config, datasets, problems)
    images = [entry for entry in datasets if entry.dataset_type != "text_embeds"]
    rows = choose_row_sets(images, registry)
    # from here on these are plain target sets
    images = [entry.model_copy(update={"conditioning_type": None}) if entry.id in rows else entry for entry in images]
    held_out = choose_held_out(config, images, problems)
    images = _without_unused(images, held_out.unused, problems)
    texts = plan_text_entries(config, datasets, problems)
    plans = []
    for entry in images:
        planner = _DatasetPlanner(
            config=config,
            entry=entry,
            row_pairing=rows.get(entry.id),
            held_out=entry.id in held_out.ids,
            texts=texts,
            registry=registry,
            problems=problems,
        )
        plan = planner.plan()
        if plan is not None:
            plans.append(plan)
    check_folders(plans, texts, problems)
    check_references(config, images, rows, registry, problems)
    check_training(config, images, held_out.ids, problems)
    if len(problems) > before:
        return None
    flavour = chosen_flavour(config, registry)
    return DataPlan(
        datasets=tuple(plans),
        combined=config.conditioning_multidataset_sampling == "combined",
        references_fit_target=flavour is not None and flavour.references_fit_target,
        index_path=config.cache_dir / "index.sqlite",
        text_folder=texts.default_folder,
        written_folders=planned_folders(config, datasets, plans, texts.default_folder, registry),
        seed=config.seed,
    )


@dataclass(frozen=True, kw_only=True)
class _DatasetPlanner:
    """Plans one entry of images."""

    config: RunConfig
    entry: DatasetConfig
    row_pairing: str | None
    """The pairing that places the references of its rows; None if its source has none, or no pairing is known."""
    held_out: bool
    texts: TextEntries
    registry: Registry
    problems: Problems

    @property
    def who(self) -> str:
        return f"dataset {self.entry.id!r}: "

    def plan(self) -> DatasetPlan | None:
        """The plan, or None after a problem."""
        before = len(self.problems)
        entry = self.filled
        source: DataSource | None = self._build("data source", entry.type)
        captions: CaptionSource | None = self._build("caption source", entry.caption_strategy)
        crop_style = self._crop_style(entry)
        pairing = self._pairing(entry)
        row_pairing: Pairing | None = self._build("pairing", self.row_pairing)
        edits = plan_caption_edits(self.config, entry, self.texts.by_set.get(entry.id), self.problems)
        rules = size_rules(self.config, entry, self.problems)
        generators = plan_generators(self.config, entry, self.registry, self.problems)
        family_options = self._asked("family", self.config.model_family)
        loss_options = self._asked("loss", self.config.loss_type)
        self._note_unused_keys(source, captions, crop_style, pairing, row_pairing, family_options, loss_options)
        if len(self.problems) > before or source is None:
            return None
        if source.streams and not _first_given(entry.vae_cache_ondemand, self.config.vae_cache_ondemand):
            self.problems.note(
                f"{self.who}streaming = true: images are encoded when a batch first needs them, as with "
                "vae_cache_ondemand = true"
            )
        return DatasetPlan(
            config=entry,
            source=source,
            captions=captions,
            caption_edits=edits,
            rules=rules,
            crop_style=crop_style,
            pairing=pairing,
            row_pairing=row_pairing,
            takes_source_captions=(
                "caption_strategy" not in self.entry.model_fields_set
                and not entry.is_reference
                and not self.config.only_instance_prompt
            ),
            references=entry.conditioning_data,
            generators=generators,
            latents_folder=entry.cache_dir_vae or self.config.cache_dir / "vae" / entry.id,
            text_folder=self.texts.folder_of(entry.id),
            family_options=family_options,
            loss_options=loss_options,
            held_out=self.held_out,
            latents_on_demand=source.streams or _first_given(entry.vae_cache_ondemand, self.config.vae_cache_ondemand),
            latents_stored=not _first_given(entry.vae_cache_disable, self.config.vae_cache_disable),
        )

    @cached_property
    def filled(self) -> DatasetConfig:
        """The entry with the run's values of what it does not set."""
        return with_run_defaults(self.config, self.entry, self.problems)

    def _build(self, kind: str, name: str | None) -> Any:
        """The object that the entry names, of one kind; None if it names none, or after a problem."""
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
        """The dataset options of the run's family or loss; a reference set has no samples, so it gets none."""
        chosen = self.registry.all(kind).get(name)  # an unknown name is a problem of the run
        if chosen is None or chosen.dataset_options is None or self.entry.is_reference:
            return None
        return self._built(chosen.dataset_options, f"{EXTENSIONS[kind].key} {name!r}")

    def _built(self, cls: type[OptionsT], asked_by: str) -> OptionsT | None:
        """The entry's options of a class; None after a problem."""
        try:
            return self.filled.build(cls)
        except ValidationError as error:
            for sentence in explain(error, self.filled.model_dump(mode="json")).values():
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

    def _crop_style(self, entry: DatasetConfig) -> CropStyle | None:
        """The style that looks at pixels; also built to be checked if nothing is cropped."""
        if entry.crop_style in PLAIN_CROP_STYLES:
            return None
        style: CropStyle | None = self._build("crop style", entry.crop_style)
        return style if entry.crop else None

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
        return " with the type, captions, crop and pairing of this dataset"


def _without_unused(
    images: Sequence[DatasetConfig], unused: Collection[str], problems: Problems
) -> list[DatasetConfig]:
    """Drop unused target sets, and the reference sets that no other target set names."""
    by_id = {entry.id: entry for entry in images}
    named = {name for entry in images for name in entry.conditioning_data}
    wanted = {name for entry in images if entry.id not in unused for name in entry.conditioning_data}
    for entry in images:
        check_names(entry, by_id, problems)
        if entry.is_reference and entry.id not in named:
            problems.note(f"dataset {entry.id!r}: not used, no target set names it in conditioning_data")
    return [entry for entry in images if (entry.id in wanted if entry.is_reference else entry.id not in unused)]


def _first_given(of_the_set: bool | None, of_the_run: bool) -> bool:
    return of_the_run if of_the_set is None else of_the_set
