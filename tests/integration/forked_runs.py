"""Runs in processes of their own that need not import torch: they are forked from one that has done so and no more.

Such a process has arguments, environment, folder, output and signals of its own. Tests of what happens while a
program starts or exits begin a real one instead.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from long_runs import PATIENCE

FORKING = multiprocessing.get_context("forkserver")
"""The process to fork from is started when the first run is, and ends with this one."""
FORKING.set_forkserver_preload(
    [
        "diffusers.loaders",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.transformers.transformer_flux",
        "optimi",
        "transformers.models.t5.modeling_t5",
        "difftrain.cli.main",
        "difftrain.training.session",
        "difftrain_flux_kontext.plugin",
    ]
)
DIFFTRAIN = "difftrain.cli.main:main"


class ForkedRun:
    """One process; behaves like a Popen with ``stdout=PIPE, stderr=PIPE, text=True``."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[object],
        program: str = DIFFTRAIN,
        *,
        given: Path = Path(os.devnull),
        errors: Path | None = None,
        **environment: object,
    ) -> None:
        """Start it in a folder.

        Args:
            program: Module and function, as entry points name them; it reads ``sys.argv``.
            given: What standard input is read from.
            errors: A file, pipe or device that takes standard error; then ``communicate`` does not return it.
            environment: More variables, or other values of them.
        """
        self._written = tempfile.TemporaryDirectory()
        self._files = [Path(self._written.name, name) for name in ("out", "err")]
        for file in self._files:
            file.touch()
        variables = {**os.environ, **{key: str(value) for key, value in environment.items()}}
        words = [str(argument) for argument in arguments]
        streams = [str(file) for file in (given, self._files[0], errors or self._files[1])]
        self._process = FORKING.Process(target=_become, args=(program, words, str(folder), variables, streams))
        self._process.start()
        atexit.register(self.kill)  # a failed test may leave it, and multiprocessing would wait for it at the exit

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(self._files[1].read_text(errors="replace"))
        out, err = (file.read_text(errors="replace") for file in self._files)
        return out, err


def two_ranks(folder: Path, arguments: Sequence[object], program: str = DIFFTRAIN) -> tuple[list[int | None], str]:
    """Run two processes of one run, as torchrun starts them; return their exit statuses, and what they say together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = [ForkedRun(folder, arguments, program, RANK=rank, LOCAL_RANK=rank, **common) for rank in range(2)]
    try:
        said = "".join(run.communicate()[1] for run in runs)
    finally:
        for run in runs:  # one that waits for another that has ended
            run.kill()
    return [run.returncode for run in runs], said


def _become(program: str, words: list[str], folder: str, environment: Mapping[str, str], streams: list[str]) -> None:
    """Be the program, in the new process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(streams):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY), number)
    sys.stdin = open(0)  # noqa: SIM115
    sys.argv = ["difftrain", *words]
    importlib.reload(importlib.import_module("huggingface_hub.constants"))  # it reads the environment once
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    module, function = program.split(":")
    sys.exit(getattr(importlib.import_module(module), function)())
