"""The commands that repeat or resume a run."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence


def same_command(arguments: Sequence[str]) -> str:
    """Return the command line that the user typed.

    Args:
        arguments: The run's arguments, without the program's name.
    """
    return shlex.join([*_program(), *arguments])


def resume_command(arguments: Sequence[str]) -> str:
    """Return the command line that resumes a run from its newest checkpoint, wherever it was itself resumed from.

    Args:
        arguments: The run's arguments, without the program's name.
    """
    kept: list[str] = []
    skip = False
    for argument in arguments:
        name, has_value, _ = argument.partition("=")
        if skip:
            skip = False
        elif name.replace("-", "_") == "__resume_from_checkpoint":
            skip = not has_value
        else:
            kept.append(argument)
    return same_command([*kept, "--resume_from_checkpoint", "latest"])


def push_command(arguments: Sequence[str]) -> str:
    """Return the command line that uploads a run's results.

    Args:
        arguments: The run's arguments, without the program's name.
    """
    kept = [argument for argument in arguments if argument.partition("=")[0] != "--fast"]
    return shlex.join([*_one_process(), "push", *kept])


def _one_process() -> list[str]:
    return ["difftrain"] if shutil.which("difftrain") else [sys.executable, "-m", "difftrain"]


def _program() -> list[str]:
    """Return how to start this program the same way, with as many processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _one_process()
    launcher = ["torchrun"] if shutil.which("torchrun") else [sys.executable, "-m", "torch.distributed.run"]
    machines = os.environ.get("GROUP_WORLD_SIZE", "1")
    if machines != "1":
        launcher += ["--nnodes", machines, "--node_rank", os.environ["GROUP_RANK"]]
        launcher += ["--master_addr", os.environ["MASTER_ADDR"], "--master_port", os.environ["MASTER_PORT"]]
    processes = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    return [*launcher, "--nproc_per_node", processes, "-m", "difftrain"]
