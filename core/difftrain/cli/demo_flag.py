"""``--demo``: the run file that ships with the program, for whatever model the other flags name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from difftrain.config.config_files import FlagValue

FOLDER_VARIABLE = "DIFFTRAIN_DEMO"
"""Environment variable that the demo's files use for the folder they lie in."""


def demo_folder() -> Path:
    """Where the demo's config files and photographs are installed."""
    return Path(str(files("difftrain") / "demo"))


_KEEPING_THE_TIME = frozenset({"model_family", "model_flavour", "output_dir", "cache_dir", "plugins", "seed"})
"""Flags with which the demo takes as long as without."""


def opening(model: str, flags: Mapping[str, FlagValue]) -> str:
    """What the demo is about to do.

    Args:
        model: The model that is trained, for instance ``NAME (FAMILY FLAVOUR)``.
        flags: As typed; they may make the demo shorter or longer.
    """
    length = "It takes about two minutes on two CPU cores; " if _KEEPING_THE_TIME.issuperset(flags) else ""
    return (
        f"demo: the model {model} learns to sharpen photographs, from sharp ones and blurred copies of them.\n"
        f"{length}8 photographs are held out, to see what it has learnt."
    )


def closing(typed: str, sheet: Path | None) -> str:
    """What to do next, and where the images are.

    Args:
        typed: The model's flags as the user typed them, for instance ``--model NAME --flavour NAME``.
        sheet: The newest sheet of the run; None when it drew none.
    """
    text = f"""\
this was the demo, on {demo_folder()}: its two config files are short and explained.
for a real run:
  1. write config/config.json and config/multidatabackend.json (README, "A real run"), or copy the demo's
  2. difftrain check {typed}      config, files and pairs, before any weight is loaded
  3. difftrain {typed}
run the demo again with --resume_from_checkpoint none to start anew; caches are reused"""
    return text if sheet is None else f"{text}\nthe photographs, blurred, before and after training: {sheet}"


def demo_config(flags: Mapping[str, FlagValue]) -> tuple[Path, dict[str, FlagValue]]:
    """The demo's run file, and the flags unchanged: they win over it like over any other file."""
    os.environ[FOLDER_VARIABLE] = str(demo_folder())
    return demo_folder() / "config.jsonc", dict(flags)
