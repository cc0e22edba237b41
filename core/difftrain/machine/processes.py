"""Several processes of one run: all of them are there, and the first one does what must be done once.

Nothing here imports torch before there is more than one process, so that a run of one process can say what is wrong
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
"""How long a process waits for another one; the first process may encode a large dataset meanwhile."""


def processes_started() -> int:
    """How many processes the launcher says that it started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_accelerator() -> Accelerator:
    """The accelerate object; autocast and accumulation are ours, so that the loop shows them. May be called again.

    Raises:
        MachineError: If fewer processes came up than were started: each would train alone and overwrite the others.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    # without being told, accelerate starts every process of a machine that has no GPU as the only one
    on_cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    patience = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience])
    if accelerator.num_processes != processes_started():
        raise MachineError(
            f"{processes_started()} processes were started but accelerate sees {accelerator.num_processes}\n"
            "hint: start with `torchrun --nproc_per_node N -m difftrain ...`"
        )
    return accelerator


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process runs the body before all others do, which then find made what it made.

    Raises:
        StoppedElsewhere: In the others, if the first did not get through the body; it has said why.
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
    """The greatest of all processes' numbers; all of them must ask, and each waits for the last one."""
    if accelerator.num_processes == 1:
        return number
    import torch

    own = torch.tensor(float(number), device=accelerator.device)
    return int(accelerator.reduce(own, reduction="max").item())
