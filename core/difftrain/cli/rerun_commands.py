"""The commands that repeat or resume a run, and what a command says when a signal stops it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence

from difftrain.machine.interrupts import Interrupted, Interrupts
from difftrain.types import Reporter


def until_stopped(work: Callable[[Reporter], int], kept: Callable[[], str], arguments: Sequence[str]) -> int:
    """Do the work of a command that saves nothing on its way, and return its exit status.

    Args:
        work: Returns the status; a signal ends it at once, and what it wrote under temporary names it removes.
        kept: Says what is left when a signal has ended it.
        arguments: The command line after the program's name.

    Returns:
        That of the work; 128 plus the number of the signal that ended it.
    """
    from difftrain.output.console import make_reporter  # rich takes a moment, which --help need not wait for

    interrupts = Interrupts()
    reporter = make_reporter(reader_left=interrupts.reader_left, ask=interrupts.ask)
    try:
        with interrupts:
            return work(reporter)
    except Interrupted as interrupt:
        # outside of the with: a signal that arrives during a call into C may be raised only on leaving it
        reporter.say(f"stopped by {interrupt}; {kept()}")
        reporter.say("start again with:")
        reporter.say(f"  {same_command(arguments)}")
        return 128 + interrupt.number


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
