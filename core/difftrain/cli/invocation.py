"""The parsed command line that a command receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.config.config_files import FlagValue
from difftrain.errors import ConfigError
from difftrain.plugins.discovery import LoadedPlugins

if TYPE_CHECKING:
    from difftrain.planning.run_plan import RunPlan


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One invocation of the program."""

    config: Path | None
    """``--config``."""
    demo: bool
    fast: bool
    """``--fast``: do not test before the start whether images can be decoded."""
    json: bool
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

        config, flags = self.config, self.flags
        if self.demo:
            if config is not None:
                raise ConfigError("--demo comes with its own run file; leave out either --config or --demo")
            from difftrain.cli.demo_flag import demo_config

            config, flags = demo_config(flags)
        return plan_run(config, flags, plugins=self.plugins)
