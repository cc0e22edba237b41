"""How much of a GPU's memory a process can have."""

from __future__ import annotations

import torch


def available(device: torch.device) -> float:
    """Return the bytes that this process has and can still get: no more than its cap."""
    free, total = torch.cuda.mem_get_info(device)
    cap = total * torch.cuda.get_per_process_memory_fraction(device.index)
    return min(cap, free + torch.cuda.memory_reserved(device))
