"""Several processes of one run: checks that all have started, and lets the first do what must be done once.

Nothing here imports torch unless there is more than one process, so that a single-process run can report problems
with its data within a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from difftrain.errors import MachineError, StoppedElsewhere

if TYPE_CHECKING:
    from accelerate import Accelerator

LONGEST_WAIT = timedelta(days=7)
"""How long a process waits for another; the first process may have to encode a large dataset meanwhile."""


def processes_started() -> int:
    """Return the number of processes that the launcher says it started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that reports and writes, as far as the launcher says."""
    return os.environ.get("RANK", "0") == "0"


def start_accelerator() -> Accelerator:
    """Return the accelerate object; autocast and accumulation are ours, so the loop shows them. May be called again.

    Raises:
        MachineError: If fewer processes came up than were started: each would train alone and overwrite the others.
            Also if `accelerate launch` was asked for several and started one.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    # unless told, accelerate treats each process on a machine without a GPU as the only one
    on_cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    patience = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience])
    if accelerator.num_processes != processes_started():
        raise MachineError(
            f"{processes_started()} processes were started but accelerate sees {accelerator.num_processes}\n"
            "hint: start with `torchrun --nproc_per_node N -m difftrain ...`"
        )
    if accelerator.num_processes == 1 and _several_were_asked_of_accelerate():
        raise MachineError(
            "accelerate launch was asked for several processes but started one, as it does with --cpu\n"
            "hint: start with `torchrun --nproc_per_node N -m difftrain ...`"
        )
    return accelerator


def _several_were_asked_of_accelerate() -> bool:
    """Whether the program was started by accelerate's launcher for one process with what only several need."""
    return {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the body in the first process before all others, which then find what it made.

    Raises:
        StoppedElsewhere: In the others, if the first did not complete the body; it has reported why.
    """
    if processes_started() == 1:
        yield
        return
    accelerator = start_accelerator()
    if not accelerator.is_main_process:
        if greatest(accelerator, 0):
            raise StoppedElsewhere
        yield
        return
    got_through = False
    try:
        yield
        got_through = True
    finally:
        greatest(accelerator, 0 if got_through else 1)


def greatest(accelerator: Accelerator, number: int) -> int:
    """Return the greatest of all processes' numbers; all must call this, and each waits for the last one."""
    if accelerator.num_processes == 1:
        return number
    import torch

    own = torch.tensor(float(number), device=accelerator.device)
    return int(accelerator.reduce(own, reduction="max").item())
