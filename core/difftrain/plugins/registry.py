"""The classes that loaded plugins provide, by kind and name.

The config chooses by name, never by load order: two objects of one kind with one name are an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from difftrain import contracts
from difftrain.config.known_keys import PLAIN_CROP_STYLES, PRECISION_KEYS
from difftrain.config.messages import nearest
from difftrain.config.options import Options
from difftrain.errors import PluginError


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """One kind of object that plugins provide."""

    hook: str
    contract: type[Options]
    key: str
    """The config key that names an object of this kind."""
    more_keys: tuple[str, ...] = ()
    """Other keys that do."""
    run_options: bool = False
    """True if the fields are keys of the run file."""
    dataset_options: bool = False
    """True if the fields are keys of a dataset entry."""
    asks_samples: bool = False
    """True if the fields of a class's ``dataset_options`` are keys of a dataset entry."""
    is_chosen: bool = True
    """False if every run has all of the kind; the key is then only for messages."""
    own_names: tuple[str, ...] = ()
    """Names that the core itself understands, without a class; no plugin may take them."""


EXTENSIONS: Mapping[str, Extension] = {
    "family": Extension(
        hook="difftrain_model_families",
        contract=contracts.ModelFamily,
        key="model_family",
        run_options=True,
        asks_samples=True,
    ),
    "flavour": Extension(
        hook="difftrain_model_flavours", contract=contracts.ModelFlavour, key="model_flavour", run_options=True
    ),
    "adapter": Extension(hook="difftrain_adapters", contract=contracts.Adapter, key="lora_type", run_options=True),
    "optimizer": Extension(hook="difftrain_optimizers", contract=contracts.OptimizerFactory, key="optimizer"),
    "schedule": Extension(
        hook="difftrain_schedules", contract=contracts.Schedule, key="lr_scheduler", run_options=True
    ),
    "quantizer": Extension(
        hook="difftrain_quantizers",
        contract=contracts.Quantizer,
        key=PRECISION_KEYS[0],
        more_keys=PRECISION_KEYS[1:],
        run_options=True,
    ),
    "timestep sampler": Extension(
        hook="difftrain_timestep_samplers",
        contract=contracts.TimestepSampler,
        key="timestep_sampler",
        run_options=True,
    ),
    "loss": Extension(
        hook="difftrain_losses", contract=contracts.Loss, key="loss_type", run_options=True, asks_samples=True
    ),
    "data source": Extension(
        hook="difftrain_data_sources", contract=contracts.DataSource, key="type", dataset_options=True
    ),
    "caption source": Extension(
        hook="difftrain_caption_sources",
        contract=contracts.CaptionSource,
        key="caption_strategy",
        dataset_options=True,
    ),
    "crop style": Extension(
        hook="difftrain_crop_styles",
        contract=contracts.CropStyle,
        key="crop_style",
        dataset_options=True,
        own_names=PLAIN_CROP_STYLES,
    ),
    "pairing": Extension(
        hook="difftrain_pairings", contract=contracts.Pairing, key="conditioning_type", dataset_options=True
    ),
    "generator": Extension(
        hook="difftrain_conditioning_generators", contract=contracts.ConditioningGenerator, key="conditioning.type"
    ),
    "observer": Extension(
        hook="difftrain_observers", contract=contracts.Observer, key="observer", run_options=True, is_chosen=False
    ),
}
"""Every kind by its name, in the order of lists shown to users."""


@dataclass(frozen=True, slots=True)
class _Entry:
    provided: type[Any]
    provider: str


@dataclass(kw_only=True)
class Registry:
    """All registered classes. Filled at start-up by :mod:`difftrain.plugins.discovery`, then only read."""

    absent: list[str] = field(default_factory=list)
    """One sentence for each plugin that is installed but not loaded; shown if a name is not found."""
    _entries: dict[str, dict[str, _Entry]] = field(default_factory=lambda: {kind: {} for kind in EXTENSIONS})

    def add(self, kind: str, provided: type[Options], provider: str) -> None:
        """Add one class under its name and aliases.

        Args:
            provider: Distribution and version, for messages.

        Raises:
            PluginError: If the name is taken; names both providers.
        """
        for name in names_of(kind, provided):
            taken = self._entries[kind].get(name)
            if taken is not None:
                raise PluginError(
                    f"{kind} {name!r} is given twice: by {taken.provider} and by {provider}\n"
                    "hint: uninstall one of them, or turn one off with --disable_plugin NAME (see `difftrain plugins`)"
                )
            if name in EXTENSIONS[kind].own_names:
                raise PluginError(
                    f"{kind} {name!r} of {provider} has a name of difftrain's own\n"
                    "hint: turn it off with --disable_plugin NAME (see `difftrain plugins`)"
                )
            self._entries[kind][name] = _Entry(provided, provider)

    def find(self, kind: str, name: str, *, family: str | None = None) -> type[Any]:
        """Return the class that a config names.

        Args:
            family: Needed for the kind ``flavour``, whose names are unique only per family.

        Raises:
            PluginError: If there is none; gives the nearest name, all names, and the plugins that did not load.
        """
        choices = self.flavours(family) if kind == "flavour" and family is not None else self.all(kind)
        if name in choices:
            return choices[name]
        of_family = f" of {family!r}" if kind == "flavour" and family is not None else ""
        known = (*EXTENSIONS[kind].own_names, *(one for one, cls in choices.items() if _is_named_by_key(cls)))
        raise PluginError(f"unknown {kind} {name!r}{of_family}; {_advice(name, known)}{self._absent_hint()}")

    def _absent_hint(self) -> str:
        """Return the same hint for every name, so that a report of several problems gives it once."""
        return f"\nhint: {'; '.join([*self.absent, 'see `difftrain plugins`'])}" if self.absent else ""

    def all(self, kind: str) -> dict[str, type[Any]]:
        """Return every class of a kind by name, aliases included; flavours are named ``FAMILY/NAME``."""
        return {name: entry.provided for name, entry in self._entries[kind].items()}

    def flavours(self, family: str) -> dict[str, type[Any]]:
        """Return the flavours of one family, by name."""
        return {cls.name: cls for cls in self.all("flavour").values() if cls.family == family}

    def default_flavour(self, family: str) -> str | None:
        """Return the flavour of a run that names none: the family's default, or its only one."""
        flavours = self.flavours(family)
        declared: str | None = getattr(self.all("family").get(family), "default_flavour", None)
        return declared if declared in flavours else next(iter(flavours)) if len(flavours) == 1 else None

    def default_flavours(self) -> dict[str, str]:
        """Return declared default flavours by family; the only flavour of a family needs no note."""
        found = {name: self.default_flavour(name) for name in self.all("family") if len(self.flavours(name)) > 1}
        return {name: flavour for name, flavour in found.items() if flavour is not None}

    def classes(self, kind: str) -> tuple[type[Any], ...]:
        """Return every class of a kind once, in the order of registration."""
        return tuple(dict.fromkeys(self.all(kind).values()))

    def provider(self, kind: str, provided: type[Any]) -> str:
        """Return the distribution and version that provide a class."""
        return next(entry.provider for entry in self._entries[kind].values() if entry.provided is provided)

    def names_by_key(self) -> dict[str, frozenset[str]]:
        """Return the names that each config key may have; flavours of all families together."""
        return {
            key: frozenset(
                name.rsplit("/", 1)[-1] if kind == "flavour" else name
                for name, cls in self.all(kind).items()
                if _is_named_by_key(cls)
            ).union(facts.own_names)
            for kind, facts in EXTENSIONS.items()
            if facts.is_chosen
            for key in (facts.key, *facts.more_keys)
        }

    def run_option_classes(self) -> tuple[type[Options], ...]:
        """Return classes whose fields are keys of the run file."""
        return tuple(cls for kind, facts in EXTENSIONS.items() if facts.run_options for cls in self.classes(kind))

    def dataset_option_classes(self) -> tuple[type[Options], ...]:
        """Return classes whose fields are keys of a dataset entry."""
        own = [cls for kind, facts in EXTENSIONS.items() if facts.dataset_options for cls in self.classes(kind)]
        return (*own, *dict.fromkeys(asked for _, _, asked in self.asking_samples()))

    def asking_samples(self) -> Iterator[tuple[str, type[Any], type[Options]]]:
        """Yield (kind, class, its ``dataset_options``) of every class with options per dataset."""
        for kind, facts in EXTENSIONS.items():
            for cls in self.classes(kind) if facts.asks_samples else ():
                if cls.dataset_options is not None:
                    yield kind, cls, cls.dataset_options


def _is_named_by_key(cls: type[Any]) -> bool:
    """Whether the key of its kind takes the name: ``lora_type`` does not take what ``model_type`` names."""
    return not getattr(cls, "trains_base", False)


def _advice(name: str, choices: Iterable[str]) -> str:
    listed = sorted(choices)
    guess = nearest(name, listed)
    known = f"known: {', '.join(listed)}" if listed else "none is installed"
    return f"did you mean {guess!r}? {known}" if guess else known


def names_of(kind: str, provided: type[Any]) -> tuple[str, ...]:
    """Return the names that find a class."""
    if kind == "flavour":
        return (f"{provided.family}/{provided.name}",)
    return (provided.name, *getattr(provided, "aliases", ()))


def check_provided(kind: str, provided: object) -> type[Options]:
    """Return the class that a hook returned, after checking that it fulfils the contract.

    Raises:
        PluginError: If it is not a complete subclass of the kind's contract, or has no name.
    """
    contract = EXTENSIONS[kind].contract
    hook = EXTENSIONS[kind].hook
    if not (isinstance(provided, type) and issubclass(provided, contract)):
        raise PluginError(f"{hook} must return subclasses of difftrain.{contract.__name__}, got {provided!r}")
    if inspect.isabstract(provided):
        missing = ", ".join(sorted(provided.__abstractmethods__))
        raise PluginError(f"{hook}: {provided.__qualname__} lacks members of {contract.__name__}: {missing}")
    for fact in ("family", "name", "hub_id") if kind == "flavour" else ("name",):
        if not (isinstance(getattr(provided, fact, None), str) and getattr(provided, fact)):
            raise PluginError(f"{hook}: {provided.__qualname__} needs a class attribute {fact!r}, a text")
    asked = getattr(provided, "dataset_options", None) if EXTENSIONS[kind].asks_samples else None
    if asked is not None and not (isinstance(asked, type) and issubclass(asked, Options)):
        raise PluginError(
            f"{hook}: dataset_options of {provided.__qualname__} must be a subclass of difftrain.Options, got {asked!r}"
        )
    return provided
