"""The wheel contains what the source tree contains: the command, the plugins, the demo's data."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import difftrain

ROOT = Path(__file__).parents[2]


def test_the_wheel_works_outside_of_the_source_tree():
    command = [sys.executable, "tools/try_wheel.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "work outside the source tree" in done.stdout


def test_the_version_is_stated_once_and_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == difftrain.__version__
