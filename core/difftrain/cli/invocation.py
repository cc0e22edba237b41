"""What a command is given: the command line, read."""

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
    """One call of the program."""

    config: Path | None
    """``--config``."""
    demo: bool
    fast: bool
    """``--fast``: images are not decoded before they are encoded."""
    json: bool
    flags: Mapping[str, FlagValue]
    """Run options by plain key, texts as typed."""
    arguments: tuple[str, ...]
    """The command line after the program's name, as typed."""
    plugins: LoadedPlugins

    def plan(self) -> RunPlan:
        """The plan of the run that the command line describes.

        Raises:
            ConfigError: With every problem there is.
        """
        from difftrain.planning.run_plan import plan_run

        config, flags = self.config, self.flags
        if self.demo:
            if config is not None:
                raise ConfigError("--demo has a run file of its own; leave --config out, or leave --demo out")
            from difftrain.cli.demo_flag import demo_config

            config, flags = demo_config(flags)
        return plan_run(config, flags, plugins=self.plugins)
