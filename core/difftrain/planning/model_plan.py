"""The plan of a model, for commands that only load one: to edit, to export, to fill caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from difftrain import contracts
from difftrain.config.config_files import (
    DEFAULT_PATH,
    ConfigFile,
    FlagValue,
    find_run_file,
    load_run,
    plugin_switches,
)
from difftrain.config.known_keys import (
    NO_PRECISIONS,
    NOT_BUILT_VALUES,
    PRECISION_KEYS,
    PRECISION_WORDS,
    UNCLEAR_PRECISIONS,
)
from difftrain.config.messages import explain
from difftrain.config.optimizer_settings import optimizer_options
from difftrain.config.options import Options
from difftrain.config.problems import Problems
from difftrain.config.schema import RunConfig
from difftrain.errors import PluginError
from difftrain.model.attention.kernel_names import missing_package
from difftrain.model.flavour_match import check_name
from difftrain.planning.auto_precision import AUTO_PRECISIONS
from difftrain.planning.combinations import (
    clash_of_weights,
    clashes_of_adapter,
    clashes_of_family,
    clashes_of_precision,
)
from difftrain.plugins.discovery import LoadedPlugins, load_plugins
from difftrain.plugins.registry import EXTENSIONS, Registry


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """A model with its adapter; only the config file has been read."""

    config: RunConfig
    family: contracts.ModelFamily
    flavour: contracts.ModelFlavour
    adapter: contracts.Adapter
    quantizer: contracts.Quantizer | None
    """None for ``base_model_precision: no_change``, and for ``auto`` until
    :func:`~difftrain.training.settle_precision.settle_precision`."""
    text_quantizers: tuple[contracts.Quantizer | None, ...] = ()
    """One for each of the family's text encoders; None for ``no_change``. Empty if none is quantised."""
    plugins: LoadedPlugins
    notes: tuple[str, ...]
    """Printed once at start-up."""


def plan_model(
    file: Path | ConfigFile | None, flags: Mapping[str, FlagValue], *, plugins: LoadedPlugins | None = None
) -> ModelPlan:
    """Read the run file and build the objects of its model. The dataset list and the length may be missing.

    Args:
        file: The run file, or what it holds; None uses ``config/config.json`` if it exists.
        flags: Run options by plain key, as typed texts; they win over the file.
        plugins: Plugins already loaded with the switches of this file and these flags; None loads them.

    Raises:
        ConfigError: With every problem found.
        PluginError: If a bundled plugin is broken or two plugins use one name.
    """
    problems = Problems()
    run, plugins = read_run(file, flags, problems, plugins, needs_length=False)
    chosen = Chooser(config=run, registry=plugins.registry, problems=problems)
    family, flavour = chosen.family(), chosen.flavour()
    adapter, quantizer = chosen.adapter(), chosen.quantizer()
    text_quantizers = chosen.text_quantizers(family)
    chosen.check_combinations(family, adapter, quantizer)
    check_model(run, flavour, plugins, problems)
    problems.raise_all()
    return ModelPlan(
        config=run,
        family=family,
        flavour=flavour,
        adapter=adapter,
        quantizer=quantizer,
        text_quantizers=text_quantizers,
        plugins=plugins,
        notes=(*plugin_notes(plugins), *problems.notes),
    )


def read_run(
    file: Path | ConfigFile | None,
    flags: Mapping[str, FlagValue],
    problems: Problems,
    plugins: LoadedPlugins | None = None,
    *,
    needs_length: bool = True,
) -> tuple[RunConfig, LoadedPlugins]:
    """Return the run's options, and the plugins, loading them if needed; problems that still leave a config are kept.

    Raises:
        ConfigError: With every problem found, if no config can be made.
    """
    if not isinstance(file, ConfigFile):
        file = find_run_file(file)
    if plugins is None:
        files, disabled = plugin_switches(file, flags)
        plugins = load_plugins(files=files, disabled=disabled)
    config = load_run(
        file,
        flags,
        plugins.run_schema,
        plugins.registry.names_by_key(),
        problems,
        tables=plugins.run_tables,
        default_flavours=plugins.registry.default_flavours(),
        needs_length=needs_length,
    )
    if config is None:
        if file.path is None:
            problems.texts.insert(
                0,
                f"no run file: {DEFAULT_PATH} does not exist in {Path.cwd()}; name one with --config PATH, "
                "or add --demo to try difftrain without data of your own",
            )
        problems.raise_all()
    assert config is not None, "no config without a problem"
    return config, plugins


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """Builds the objects that a run names; a problem is recorded and gives None."""

    config: RunConfig
    registry: Registry
    problems: Problems

    def named(self, kind: str, name: str, *, family: str | None = None, key: str | None = None) -> Any:
        """Return the object, or None.

        Args:
            key: The config key that gives the name, if it is not the usual one of the kind.
        """
        key = key or EXTENSIONS[kind].key
        found = self.find(kind, name, family=family, key=key)
        if found is None:
            return None
        try:
            return self.config.build(found)
        except ValidationError as error:
            for sentence in explain(error, self.config.model_dump(mode="json")).values():
                self.problems.add(f"{key} {name!r}: {sentence}")
            return None

    def family(self) -> Any:
        """The family; one that cannot take the denoiser from where the run names it is a problem."""
        found = self.named("family", self.config.model_family)
        named = self.config.pretrained_transformer_model_name_or_path is not None
        if found and named and type(found).locate_with_denoiser is contracts.ModelFamily.locate_with_denoiser:
            self.problems.add(
                f"pretrained_transformer_model_name_or_path: model_family {found.name!r} takes its denoiser only "
                "from the folder or hub id of the whole model; name that with pretrained_model_name_or_path"
            )
        return found

    def flavour(self) -> Any:
        """The flavour that the run names, or the family's default or only one."""
        flavours = self.registry.flavours(self.config.model_family)
        name = self.config.model_flavour or self.registry.default_flavour(self.config.model_family)
        if self.config.model_family not in self.registry.all("family"):
            return None
        if name is None:
            known = ", ".join(sorted(flavours)) or "none is installed"
            self.problems.add(f"model_flavour is missing; flavours of {self.config.model_family!r}: {known}")
            return None
        return self.named("flavour", name, family=self.config.model_family)

    def adapter(self) -> Any:
        """What is trained; what is wrong with the files and packages that it needs are problems."""
        whole = self.config.model_type != "lora"
        key = "model_type" if whole else "lora_type"
        found = self.named("adapter", getattr(self.config, key), key=key)
        if found is not None and found.trains_base != whole:
            self.problems.add(f"{key} {found.name!r} is no kind of adapter; set model_type to {found.name!r} instead")
        for text in found.check() if found is not None else ():
            self.problems.add(text)
        return found

    def quantizer(self) -> Any:
        """The quantizer of the denoiser; None for ``no_change``, for ``auto`` and after a problem."""
        return self._of_precision("base_model_precision")

    def check_combinations(
        self,
        family: contracts.ModelFamily | None,
        adapter: contracts.Adapter | None,
        quantizer: contracts.Quantizer | None,
    ) -> None:
        """Record what the run asks for that does not go together, or lacks; parts that had problems are left out."""
        known: Any = self.registry.all
        clashes: list[str] = []
        clashes += clashes_of_family(self.config, family) if family else ()
        clashes += clashes_of_adapter(self.config, adapter, known("adapter")) if adapter else ()
        clashes += clashes_of_precision(self.config, quantizer, known("quantizer")) if quantizer else ()
        if adapter and quantizer and (text := clash_of_weights(adapter, quantizer)):
            clashes.append(text)
        if missing := missing_package(self.config.attention_mechanism):
            clashes.append(f'attention_mechanism {self.config.attention_mechanism!r}: {missing}, or set it to "auto"')
        for text in clashes:
            self.problems.add(text)

    def text_quantizers(self, family: contracts.ModelFamily | None) -> tuple[contracts.Quantizer | None, ...]:
        """The quantizers of the family's text encoders; empty if there are none, and after a problem."""
        if family is None:
            return ()
        there = family.text_encoders
        for key in PRECISION_KEYS[1 + there :]:
            if (name := getattr(self.config, key)) not in PRECISION_WORDS[key]:
                encoders = f"{there} text encoder{'' if there == 1 else 's'} to quantise"
                self.problems.add(f"{key} {name!r}: model_family {family.name!r} has {encoders}; leave this key out")
        found = tuple(self._of_precision(key) for key in PRECISION_KEYS[1 : 1 + there])
        return found if any(found) else ()

    def _of_precision(self, key: str) -> Any:
        name = getattr(self.config, key)
        if name in PRECISION_WORDS[key]:
            return None
        if name in UNCLEAR_PRECISIONS and name not in self.registry.all("quantizer"):
            *others, last = UNCLEAR_PRECISIONS[name]
            self.problems.add(
                f"{key} {name!r} may be {', '.join(others)} or {last}; name one of them: {others[0]} multiplies in 8 "
                "bits too, which is faster, the others only store the weights in 8 bits"
            )
            return None
        if name in NO_PRECISIONS and name not in self.registry.all("quantizer"):
            self.problems.add(f"{key} {name!r}: {NO_PRECISIONS[name]}")
            return None
        found = self.named("quantizer", name, key=key)
        missing = found.check() if found is not None else None
        if missing is not None:
            self.problems.add(f"{key} {name!r}: {missing}")
        return found

    def quantizers_of_auto(self) -> tuple[contracts.Quantizer, ...]:
        """What ``base_model_precision: auto`` may turn out to be; empty for any other precision."""
        if self.config.base_model_precision != "auto":
            return ()
        known = self.registry.all("quantizer")
        return tuple(self.named("quantizer", name) for name in AUTO_PRECISIONS if name in known)

    def find(self, kind: str, name: str, *, family: str | None = None, key: str | None = None) -> type[Options] | None:
        try:
            return self.registry.find(kind, name, family=family)
        except PluginError as error:
            key = key or EXTENSIONS[kind].key
            if name not in NOT_BUILT_VALUES.get(key, ()):
                self.problems.add(f"{key}: {error}")
            return None


def chosen_optimizer(plan: ModelPlan) -> contracts.OptimizerFactory:
    """Return the optimizer that the config names.

    Raises:
        ConfigError: If it is unknown, or its options are wrong.
    """
    problems = Problems()
    chosen = Chooser(config=plan.config, registry=plan.plugins.registry, problems=problems)
    found = chosen.find("optimizer", plan.config.optimizer)
    optimizer = None if found is None else optimizer_options(plan.config, found, problems)
    problems.raise_all()
    assert isinstance(optimizer, contracts.OptimizerFactory), "no optimizer without a problem"
    return optimizer


def check_model(
    config: RunConfig, flavour: contracts.ModelFlavour | None, plugins: LoadedPlugins, problems: Problems
) -> None:
    """Record what plugins find wrong with the config, and weights whose name cannot be the flavour's."""
    for text in plugins.check_config(config):
        problems.add(text)
    if flavour is not None:
        with problems.catching():
            problems.notes += check_name(config, flavour, plugins.registry.flavours(flavour.family))


def plugin_notes(plugins: LoadedPlugins) -> list[str]:
    used = [f"plugin {status.name!r} of {status.provider} is in use" for status in plugins.third_party()]
    return [*used, *plugins.warnings()]
