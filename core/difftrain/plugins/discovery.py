"""Finds and loads plugins independently: a broken one is recorded and does not affect the others.

Plugins are entry points of the group ``difftrain`` and files named by the run option ``plugins``. A broken
bundled plugin is an error at once; a broken third-party one is an error only if the config names something that
it provides. Stock pluggy loading would let one bad import end every command.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import pluggy

from difftrain.config.known_keys import RUN_TABLES, KnownKeys
from difftrain.config.messages import nearest
from difftrain.config.options import Options
from difftrain.config.schema import DatasetConfig, RunConfig, merge_options
from difftrain.errors import PluginError
from difftrain.plugins import hookspecs
from difftrain.plugins.registry import EXTENSIONS, Registry, check_provided, names_of

GROUP = "difftrain"
OWN_DISTRIBUTION = "difftrain"
ALWAYS = "core"
"""The entry point that cannot be turned off."""
ONLY_VARIABLE = "DIFFTRAIN_PLUGINS"


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginStatus:
    """One plugin and the result of loading it."""

    name: str
    """Name of the entry point; for a file, its path."""
    distribution: str
    version: str
    bundled: bool
    """True for plugins that come with difftrain itself."""
    status: str
    """``ok``, ``failed`` or ``disabled``."""
    provides: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names by kind."""
    error: str | None = None

    @property
    def provider(self) -> str:
        """Distribution and version, as messages name them."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True, kw_only=True)
class LoadedPlugins:
    """The plugins that start-up found."""

    registry: Registry
    manager: pluggy.PluginManager
    statuses: tuple[PluginStatus, ...]

    @cached_property
    def run_schema(self) -> type[RunConfig]:
        """Return the core's run options merged with those of every loaded class."""
        return merge_options(RunConfig, self.registry.run_option_classes())

    @cached_property
    def dataset_schema(self) -> type[DatasetConfig]:
        """Return the core's dataset keys merged with those of every loaded class."""
        return merge_options(DatasetConfig, self.registry.dataset_option_classes())

    @cached_property
    def run_tables(self) -> KnownKeys:
        """Return keys of the run file that no class has: the core's and those of every family."""
        return RUN_TABLES.with_more(family.known_keys for family in self.registry.classes("family"))

    def check_config(self, config: RunConfig) -> Iterator[str]:
        """Yield what plugins find wrong with a config; a plugin whose check fails is a problem too."""
        for implementation in self.manager.hook.difftrain_check_config.get_hookimpls():
            try:
                check = cast(Callable[..., Iterable[str] | None], implementation.function)
                yield from check(*(config for _ in implementation.argnames)) or ()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a third-party plugin may raise anything
                trace = "".join(traceback.format_exception_only(error)).strip()
                yield f"plugin {implementation.plugin_name!r} cannot check the config: {trace}"

    def versions(self) -> dict[str, str]:
        """Return the version of every loaded plugin by name; checkpoints record it."""
        return {status.name: status.provider for status in self.statuses if status.status == "ok"}

    def third_party(self) -> tuple[PluginStatus, ...]:
        """Return loaded plugins that do not come with difftrain."""
        return tuple(status for status in self.statuses if status.status == "ok" and not status.bundled)

    def warnings(self) -> list[str]:
        """Return one line for each third-party plugin that failed."""
        return [
            f"plugin {status.name!r} of {status.provider} failed to load and is left out: {status.error}"
            for status in self.statuses
            if status.status == "failed"
        ]


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A plugin that may be loaded."""

    name: str
    distribution: str
    version: str
    load: Callable[[], object]
    asked_for: bool = False
    """True for files, which the user named: if one fails, that is an error."""

    @property
    def bundled(self) -> bool:
        return self.distribution == OWN_DISTRIBUTION

    def status(self, status: str, **more: Any) -> PluginStatus:
        return PluginStatus(
            name=self.name,
            distribution=self.distribution,
            version=self.version,
            bundled=self.bundled,
            status=status,
            **more,
        )


def load_plugins(
    *, files: Sequence[str | Path] = (), disabled: Sequence[str] = (), only: Sequence[str] | None = None
) -> LoadedPlugins:
    """Load every installed plugin that is not turned off.

    Args:
        files: Python files that are plugins too; relative to the current directory.
        disabled: Names of plugins (or of their distributions) to turn off.
        only: Load just these, and ``core``; None uses the environment variable ``DIFFTRAIN_PLUGINS``.

    Raises:
        PluginError: If a bundled plugin or a named file is broken, two plugins use one name, or a switch names
            a plugin that is not installed.
    """
    candidates = [*_installed(), *(_from_file(Path(file)) for file in files)]
    if only is None:
        only = [name.strip() for name in os.environ.get(ONLY_VARIABLE, "").split(",") if name.strip()]
    _check_switches(candidates, disabled=disabled, only=only)

    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    statuses = []
    for candidate in candidates:
        off = _off_reason(candidate, disabled=disabled, only=only)
        status = candidate.status("disabled", error=off) if off else _load_one(candidate, manager, registry)
        statuses.append(status)
        if status.status == "failed":
            registry.absent.append(f"{status.provider} failed to load ({status.error})")
        elif status.status == "disabled":
            registry.absent.append(f"plugin {status.name!r} is turned off ({off})")
    return LoadedPlugins(registry=registry, manager=manager, statuses=tuple(statuses))


def _load_one(candidate: _Candidate, manager: pluggy.PluginManager, registry: Registry) -> PluginStatus:
    """Load and register one plugin and collect what it provides; keep whatever it raises as text."""
    plugin: object = None
    try:
        plugin = candidate.load()
        manager.register(plugin, name=f"{candidate.distribution}:{candidate.name}")
        manager.check_pending()
        provided = list(_provided(plugin, manager))
    except (Exception, SystemExit) as error:  # a third-party module may raise anything
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, SystemExit):
            reason = f"it ends the program ({reason})"
        if candidate.bundled or candidate.asked_for:
            what = "bundled plugin" if candidate.bundled else "plugin file"
            raise PluginError(f"{what} {candidate.name!r} is broken: {type(error).__name__}: {reason}") from error
        return candidate.status("failed", error=reason)

    status = candidate.status("ok")
    for what, cls in provided:
        registry.add(what, cls, status.provider)
    by_kind: dict[str, tuple[str, ...]] = {}
    for what, cls in provided:
        by_kind[what] = (*by_kind.get(what, ()), *names_of(what, cls))
    return candidate.status("ok", provides=by_kind)


def _provided(plugin: object, manager: pluggy.PluginManager) -> Iterable[tuple[str, type[Options]]]:
    """Yield (kind, class) of everything that one plugin registers."""
    for kind, facts in EXTENSIONS.items():
        caller = getattr(manager.hook, facts.hook)
        for implementation in caller.get_hookimpls():
            if implementation.plugin is plugin:
                for provided in implementation.function() or ():
                    yield kind, check_provided(kind, provided)


def _installed() -> list[_Candidate]:
    """Return candidates from all entry points, our own first, then by distribution and name."""
    found = []
    for point in entry_points(group=GROUP):
        distribution = point.dist
        found.append(
            _Candidate(
                name=point.name,
                distribution=distribution.metadata["Name"] if distribution else "unknown distribution",
                version=distribution.version if distribution else "",
                load=point.load,
            )
        )
    return sorted(found, key=lambda item: (not item.bundled, item.name != ALWAYS, item.distribution, item.name))


def _from_file(path: Path) -> _Candidate:
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist (looked from {Path.cwd()})")

    def load() -> object:
        name = f"difftrain_file_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise PluginError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        # pydantic looks up a class's module to resolve its annotations and read its docstrings
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return _Candidate(name=str(path), distribution=f"file {path}", version="", load=load, asked_for=True)


def _off_reason(candidate: _Candidate, *, disabled: Sequence[str], only: Sequence[str]) -> str | None:
    if candidate.name in disabled or candidate.distribution in disabled:
        return "disable_plugin"
    if only and not candidate.asked_for and candidate.name != ALWAYS:
        return None if candidate.name in only or candidate.distribution in only else ONLY_VARIABLE
    return None


def _check_switches(candidates: Sequence[_Candidate], *, disabled: Sequence[str], only: Sequence[str]) -> None:
    known = sorted({name for item in candidates for name in (item.name, item.distribution)})
    for switch, names in (("disable_plugin", disabled), (ONLY_VARIABLE, only)):
        for name in names:
            if name not in known:
                guess = nearest(name, known)
                advice = f"did you mean {guess!r}?" if guess else f"installed: {', '.join(known)}"
                raise PluginError(f"{switch}: no plugin {name!r} is installed; {advice}")
    if ALWAYS in disabled or OWN_DISTRIBUTION in disabled:
        raise PluginError(f"disable_plugin: {ALWAYS!r} cannot be turned off")
