"""The plan of a run: an object for every name, after every check that needs no data file and no weight."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftrain import contracts
from difftrain.config.config_files import FlagValue
from difftrain.config.dataset_list import load_datasets
from difftrain.config.known_keys import USUAL_ELSEWHERE
from difftrain.config.optimizer_settings import optimizer_options
from difftrain.config.options import Options
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.data.entries.data_plan import DataPlan
from difftrain.data.entries.plan_datasets import plan_datasets
from difftrain.planning.model_plan import Chooser, ModelPlan, check_model, plugin_notes, read_run
from difftrain.planning.prompts import validation_prompts
from difftrain.plugins.discovery import LoadedPlugins
from difftrain.plugins.registry import Registry

WHOLE_MODEL = 0.1
"""Usual learning rates of a whole model in multiples of those of an adapter, whose weights begin small."""


@dataclass(frozen=True, kw_only=True)
class RunPlan(ModelPlan):
    """All objects of a run; only the config files have been read."""

    data: DataPlan
    optimizer: contracts.OptimizerFactory
    schedule: contracts.Schedule
    timestep_sampler: contracts.TimestepSampler
    loss: contracts.Loss
    observers: tuple[contracts.Observer, ...]
    """One of each registered class."""
    prompts: Mapping[str, str]
    """Validation prompts by short name."""


def plan_run(
    path: Path | None,
    flags: Mapping[str, FlagValue],
    *,
    plugins: LoadedPlugins | None = None,
) -> RunPlan:
    """Read the config files, load the plugins, turn every name into an object.

    Args:
        path: The run file; None uses ``config/config.json`` if it exists.
        flags: Run options by plain key, as typed texts; they win over the file.
        plugins: Plugins already loaded with the switches of this file and these flags; None loads them.

    Raises:
        ConfigError: With every problem found.
        PluginError: If a bundled plugin is broken or two plugins use one name.
    """
    problems = Problems()
    run, plugins = read_run(path, flags, problems, plugins)
    datasets = load_datasets(run, plugins.dataset_schema, plugins.registry.names_by_key(), problems)
    return build_plan(run, datasets, plugins, problems)


def build_plan(
    config: RunConfig,
    datasets: Sequence[DatasetConfig] | None,
    plugins: LoadedPlugins,
    problems: Problems,
) -> RunPlan:
    """Build every object of a run from its options.

    Args:
        datasets: Enabled entries; None if they had problems, which are already in ``problems``.
        problems: The problems found so far; all are raised together.

    Raises:
        ConfigError: With every problem found.
    """
    chosen = _TrainingChooser(config=config, registry=plugins.registry, problems=problems)
    family = chosen.family()
    flavour = chosen.flavour()
    adapter = chosen.adapter()
    optimizer = chosen.optimizer()
    schedule = chosen.named("schedule", config.lr_scheduler)
    quantizer, text_quantizers = chosen.quantizer(), chosen.text_quantizers(family)
    chosen.check_combinations(family, adapter, quantizer)
    timestep_sampler = chosen.timestep_sampler(family)
    loss = chosen.named("loss", config.loss_type)
    observers = chosen.observers()
    chosen.check_strength(adapter, datasets or ())
    data = plan_datasets(config, datasets, plugins.registry, problems) if datasets is not None else None
    _check_buckets(config, family, problems)
    check_model(config, flavour, plugins, problems)
    prompts: dict[str, str] = {}
    with problems.catching():
        prompts = validation_prompts(config)
    problems.raise_all()
    assert data is not None, "no data plan without a problem"
    _note_doubts(config, flavour, optimizer, adapter, problems)
    quantizers = [each for each in (quantizer, *text_quantizers, *chosen.quantizers_of_auto()) if each]
    used = [family, flavour, adapter, schedule, timestep_sampler, loss, *observers, *quantizers]
    _note_unused_options(config, plugins.registry, used, problems)
    if adapter.trains_base:
        _note_options_of_adapters(config, family, problems)
    return RunPlan(
        config=config,
        data=data,
        family=family,
        flavour=flavour,
        adapter=adapter,
        optimizer=optimizer,
        schedule=schedule,
        quantizer=quantizer,
        text_quantizers=text_quantizers,
        timestep_sampler=timestep_sampler,
        loss=loss,
        observers=observers,
        prompts=prompts,
        plugins=plugins,
        notes=(*plugin_notes(plugins), *problems.notes),
    )


class _TrainingChooser(Chooser):
    """Builds the objects that only training needs."""

    def optimizer(self) -> Any:
        found = self.find("optimizer", self.config.optimizer)
        if found is None:
            return None
        return optimizer_options(self.config, found, self.problems)

    def check_strength(self, adapter: contracts.Adapter | None, datasets: Sequence[DatasetConfig]) -> None:
        """Record sets that ask for another strength of the adapter than it can have."""
        own = contracts.Adapter.at_strength
        if adapter is None or type(adapter).at_strength is not own:
            return
        able = sorted(name for name, found in self.registry.all("adapter").items() if found.at_strength is not own)
        for entry in datasets:
            for key, usual in (("is_regularisation_data", (False,)), ("slider_strength", (None, 1))):
                if (value := getattr(entry, key)) not in usual:
                    named = "model_type" if adapter.trains_base else "lora_type"
                    self.problems.add(
                        f"dataset {entry.id!r}: {key} = {json.dumps(value)} changes the strength of the adapter for "
                        f"its samples, and {named} {adapter.name!r} has none; use lora_type {' or '.join(able)}"
                    )

    def timestep_sampler(self, family: contracts.ModelFamily | None) -> Any:
        """Return the sampler that the run names, or the family's usual one."""
        name = self.config.timestep_sampler or (family.usual_timestep_sampler if family else None)
        return self.named("timestep sampler", name) if name else None

    def observers(self) -> tuple[contracts.Observer, ...]:
        """Return one of each class; third-party constructors may raise anything."""
        built = []
        for found in self.registry.classes("observer"):
            try:
                built.append(self.named("observer", found.name))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a third-party plugin may raise anything
                trace = "".join(traceback.format_exception_only(error)).strip()
                provider = self.registry.provider("observer", found)
                self.problems.add(f"observer {found.name!r} of {provider} cannot be built: {trace}")
        return tuple(observer for observer in built if observer is not None)


def _check_buckets(config: RunConfig, family: contracts.ModelFamily | None, problems: Problems) -> None:
    if family is not None and config.aspect_bucket_alignment % family.pixel_multiple:
        problems.add(
            f"aspect_bucket_alignment must be a multiple of {family.pixel_multiple} for model_family "
            f"{family.name!r}, got {config.aspect_bucket_alignment}"
        )


def _note_doubts(
    config: RunConfig,
    flavour: contracts.ModelFlavour,
    optimizer: contracts.OptimizerFactory,
    adapter: contracts.Adapter,
    problems: Problems,
) -> None:
    if flavour.distilled_from is not None:
        problems.note(
            f"flavour {flavour.name!r} is step-distilled, and training such a model makes its images "
            f"collapse; train {flavour.distilled_from} instead"
        )
    if adapter.trains_base and config.lora_type != "standard":
        problems.note(f"lora_type {config.lora_type}: no effect, model_type is {config.model_type}")
    if optimizer.usual_learning_rates is not None:
        share, trained = (WHOLE_MODEL, "a whole model") if adapter.trains_base else (1.0, "an adapter")
        low, high = (share * rate for rate in optimizer.usual_learning_rates)
        usual = f"{low:g} to {high:g} is usual for {trained} with optimizer {optimizer.name!r}"
        if config.learning_rate > high:
            problems.note(f"learning_rate {config.learning_rate:g} is high, {usual}; watch for square grids in images")
        elif config.learning_rate < low:
            problems.note(f"learning_rate {config.learning_rate:g} is low, {usual}; the model may learn little")
    if config.max_train_steps is not None and config.lr_warmup_steps >= config.max_train_steps:
        problems.note(
            f"lr_warmup_steps {config.lr_warmup_steps} is not below max_train_steps {config.max_train_steps}; "
            "the full learning rate is never reached"
        )
    if config.recomputes_some and not config.gradient_checkpointing:
        problems.note(
            f"gradient_checkpointing_interval {config.gradient_checkpointing_interval} has no effect: "
            "gradient_checkpointing is false, so nothing is recomputed"
        )


def _note_options_of_adapters(config: RunConfig, family: contracts.ModelFamily, problems: Problems) -> None:
    for key in sorted(family.adapter_options & config.model_fields_set):
        if getattr(config, key) != type(config).model_fields[key].default:
            problems.note(f"{key}: no effect, it chooses the modules of an adapter, and all weights are trained")


def _note_unused_options(config: RunConfig, registry: Registry, chosen: Sequence[Options], problems: Problems) -> None:
    used = {key for options in chosen for key in type(options).model_fields}
    unused = config.model_fields_set - set(RunConfig.model_fields) - used
    # an option at its default, here or in the program that wrote the file, asks for nothing
    for key in sorted(unused):
        if getattr(config, key) in (type(config).model_fields[key].default, USUAL_ELSEWHERE.get(key)):
            continue
        owners = [cls for cls in registry.run_option_classes() if key in cls.model_fields]
        named = " or ".join(dict.fromkeys(repr(getattr(owner, "name", owner.__name__)) for owner in owners))
        problems.note(f"{key}: no effect, it is an option of {named}, which this run does not use")
