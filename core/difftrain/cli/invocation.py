"""The parsed command line that a command receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.config.config_files import FlagValue
from difftrain.errors import ConfigError
from difftrain.plugins.discovery import LoadedPlugins

if TYPE_CHECKING:
    from difftrain.planning.model_plan import ModelPlan
    from difftrain.planning.run_plan import RunPlan


@dataclass(frozen=True, kw_only=True)
class FileFlags:
    """What commands that work on files were asked; texts as typed."""

    path: str | None = None
    """The run, checkpoint or file: the word after the command."""
    format: str | None = None
    output: str | None = None
    dtype: str | None = None
    as_lora: str | None = None
    merge: bool = False
    no_verify: bool = False


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One invocation of the program."""

    config: Path | None
    """``--config``."""
    demo: bool
    fast: bool
    """``--fast``: do not test before the start whether images can be decoded."""
    json: bool
    verify: bool = False
    """``--verify``: read every cache entry."""
    prune: bool = False
    """``--prune``: remove cache entries that the run does not need."""
    html: Path | None = None
    """``--html``: the folder for the page of the pair doctor."""
    pixels: bool = False
    """``--pixels``: compare the pixels of all pairs."""
    own: Mapping[str, str | list[str]] = field(default_factory=dict)
    """The flags of `difftrain edit` that were given, as typed."""
    card: str | None
    """``--card``: the card that `difftrain plan` explains."""
    files: FileFlags = FileFlags()
    flags: Mapping[str, FlagValue]
    """Run options by plain key; the values are texts as typed."""
    arguments: tuple[str, ...]
    """The command line after the program's name, as typed."""
    plugins: LoadedPlugins

    def plan(self) -> RunPlan:
        """Plan the run that the command line describes.

        Raises:
            ConfigError: With every problem found.
        """
        from difftrain.planning.run_plan import plan_run

        config, flags = self._files()
        return plan_run(config, flags, plugins=self.plugins)

    def model_plan(self) -> ModelPlan:
        """Plan the model alone; the dataset list and the length of the run may be missing.

        Raises:
            ConfigError: With every problem found.
        """
        from difftrain.planning.model_plan import plan_model

        config, flags = self._files()
        return plan_model(config, flags, plugins=self.plugins)

    def _files(self) -> tuple[Path | None, Mapping[str, FlagValue]]:
        if not self.demo:
            return self.config, self.flags
        if self.config is not None:
            raise ConfigError("--demo comes with its own run file; leave out either --config or --demo")
        from difftrain.cli.demo_flag import demo_config

        return demo_config(self.flags)
