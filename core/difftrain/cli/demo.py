"""``--demo``: the run file that ships with the program, for whatever model the other flags name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from difftrain.config.load import FlagValue

FOLDER_VARIABLE = "DIFFTRAIN_DEMO"
"""Environment variable that the demo's files use for the folder they lie in."""


def demo_folder() -> Path:
    """Where the demo's config files and photographs are installed."""
    return Path(str(files("difftrain") / "demo"))


def demo_config(flags: Mapping[str, FlagValue]) -> tuple[Path, dict[str, FlagValue]]:
    """The demo's run file, and the flags unchanged: they win over it like over any other file."""
    os.environ[FOLDER_VARIABLE] = str(demo_folder())
    return demo_folder() / "config.jsonc", dict(flags)
