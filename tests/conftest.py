"""Fixtures shared by all tests: the command in this process, small data sets, a cache folder of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory):
    """The built-in checkpoint is written once a test session, not into the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("DIFFTRAIN_PLUGINS", raising=False)
        yield


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run ``difftrain`` in this process, in ``tmp_path``; the same code as the real command, without its start-up."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        from difftrain.cli.main import run as run_command

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run_command([str(argument) for argument in arguments])
        return Ended(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def real_command(tmp_path):
    """Start ``difftrain`` as a process of its own in ``tmp_path``; gives the Popen."""

    def start(*arguments: object, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "difftrain", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def read_metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
