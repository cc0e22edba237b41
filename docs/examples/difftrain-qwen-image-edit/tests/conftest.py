"""Both checkpoints, written once for all tests; the installed command, run in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Return folders by flavour."""
    from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
    from tiny_checkpoint import save_tiny

    folder = tmp_path_factory.mktemp("checkpoints")
    kinds = {"edit": QwenImageEditPipeline, "edit-2509": QwenImageEditPlusPipeline}
    return {name: save_tiny(folder / name, kind) for name, kind in kinds.items()}


@dataclass(frozen=True)
class Ended:
    """The result of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def difftrain_in():
    """Run ``difftrain`` with flags given by name, in a folder."""
    (script,) = entry_points(group="console_scripts", name="difftrain")
    main = script.load()

    def run(folder: Path, *command: str, **options: Any) -> Ended:
        flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        out, err, status = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
            patch.setattr(sys, "argv", ["difftrain", *command, *flags])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    main()
                except SystemExit as end:
                    status = int(end.code or 0)
        return Ended(status, out.getvalue(), err.getvalue())

    return run
