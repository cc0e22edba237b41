"""``--demo``: the run file that ships with the program, for whichever model the other flags name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from difftrain.config.config_files import FlagValue

FOLDER_VARIABLE = "DIFFTRAIN_DEMO"
"""Environment variable with the folder of the demo's files, used inside them."""


def demo_folder() -> Path:
    """Return the folder where the demo's config files and photographs are installed."""
    return Path(str(files("difftrain") / "demo"))


_KEEPING_THE_TIME = frozenset({"model_family", "model_flavour", "output_dir", "cache_dir", "plugins", "seed"})
"""Flags that do not change how long the demo takes."""


def opening(model: str, flags: Mapping[str, FlagValue]) -> str:
    """Say what the demo is about to do.

    Args:
        model: The model in training, for instance ``NAME (FAMILY FLAVOUR)``.
        flags: As typed; they may make the demo shorter or longer.
    """
    length = "This takes about two minutes on two CPU cores; " if _KEEPING_THE_TIME.issuperset(flags) else ""
    return (
        f"demo: the model {model} learns to sharpen photographs from pairs of sharp and blurred ones.\n"
        f"{length}8 photographs are held out to show what it has learnt."
    )


def edit_words(output_dir: Path) -> list[str]:
    """Return the words of the command that sharpens the photographs that the demo holds out, and measures it."""
    photos = ["--image", str(demo_folder() / "to_edit"), "--targets", str(demo_folder() / "held_out")]
    asked = ["--prompt", "sharpen the photograph", "--strength", "0,0.5,1"]
    return ["edit", "--adapter", str(output_dir), *photos, *asked]


def closing(typed: str, sheet: Path | None, edit: str) -> str:
    """Return what to do next, and where the images are.

    Args:
        typed: The model flags, such as ``--model NAME --flavour NAME``.
        edit: The command line of :func:`edit_words`.
        sheet: The newest sheet of the run; None if it drew none.
    """
    text = f"""\
to edit photographs with what was trained, at three strengths:
  {edit}
this was the demo; its two config files in {demo_folder()} are short and commented.
for a real run:
  1. write config/config.json and config/multidatabackend.json (README, "A real run"), or copy the demo's
  2. difftrain check {typed}      checks config, files and pairs before any weight is loaded
  3. difftrain {typed}
to start the demo over, run it with --resume_from_checkpoint none; caches are reused"""
    return text if sheet is None else f"{text}\nthe photographs, blurred, before and after training: {sheet}"


def demo_config(flags: Mapping[str, FlagValue]) -> tuple[Path, dict[str, FlagValue]]:
    """Return the demo's run file and the unchanged flags, which win over it as over any other run file."""
    os.environ[FOLDER_VARIABLE] = str(demo_folder())
    return demo_folder() / "config.jsonc", dict(flags)
