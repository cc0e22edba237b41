"""The plugins that watch a run, each behind a fence: one that fails is named once, and the run goes on."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from difftrain.config.schema import RunConfig
from difftrain.errors import DifftrainError
from difftrain.plugins.load import LoadedPlugins
from difftrain.types import Reporter, StepResult


class Observers:
    """Calls the observing hooks, on the main process only."""

    def __init__(self, plugins: LoadedPlugins, reporter: Reporter, *, is_main: bool) -> None:
        self._manager = plugins.manager
        self._reporter = reporter
        self._is_main = is_main
        self._told: set[tuple[str, str]] = set()

    def run_start(self, *, config: RunConfig, output_dir: Path, total_steps: int, first_step: int) -> None:
        facts = {"config": config, "output_dir": output_dir, "total_steps": total_steps, "first_step": first_step}
        self._call("difftrain_run_start", facts)

    def step_end(self, result: StepResult) -> None:
        self._call("difftrain_step_end", {"result": result})

    def checkpoint_saved(self, *, step: int, path: Path) -> None:
        self._call("difftrain_checkpoint_saved", {"step": step, "path": path})

    def validation_end(self, *, step: int, sheets: dict[str, Path]) -> None:
        self._call("difftrain_validation_end", {"step": step, "sheets": sheets})

    def run_end(self, *, step: int, status: str) -> None:
        self._call("difftrain_run_end", {"step": step, "status": status})

    def failed(self, who: str, error: BaseException) -> None:
        """Say once that something which only watches has failed."""
        kind = type(error).__name__
        if (who, kind) not in self._told:
            self._told.add((who, kind))
            # a stranger's exception may raise again where it is asked for its text
            told = "".join(traceback.format_exception_only(error)).strip()
            text = str(error) if isinstance(error, DifftrainError) else told
            self._reporter.say(f"warning: {who} failed, and the run goes on without it: {text}")

    def _call(self, hook: str, facts: dict[str, Any]) -> None:
        if not self._is_main:
            return
        # one by one, where pluggy would stop at the first that raises; in its order, the last registered first
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                implementation.function(*(facts[name] for name in implementation.argnames))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's plugin may raise anything
                self.failed(f"{hook} of plugin {implementation.plugin_name!r}", error)
