"""Where there is room for a model whose predictions are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from difftrain.machine.disk import describe_bytes
from difftrain.model.gpu_memory import available

LARGEST_EXACT = 1_000_000_000
"""Numbers of a model up to which it is compared in float32 on the CPU; larger ones in the format of their training."""
_BESIDE = 3 << 30
"""Bytes beside the weights: activations of a small image, one changed layer, the adapter."""
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model is loaded, and its number format."""

    device: torch.device
    dtype: torch.dtype
    models: int = 1

    @property
    def exact(self) -> bool:
        return self.dtype == torch.float32

    def in_words(self, numbers: int) -> str:
        """Say what the place takes for a model of so many weights."""
        return f"{describe_bytes(_needed(numbers, self.dtype, self.models))} on {self.device}"


def room_for(numbers: int, dtype: torch.dtype, *, models: int = 1) -> Place | str:
    """Return where a model is loaded; or why nowhere.

    Args:
        numbers: Its weights.
        dtype: Number format of its training.
        models: How many sets of weights are in memory at once, such as a trained model and its base.
    """
    if numbers <= LARGEST_EXACT:
        return Place(device=torch.device("cpu"), dtype=torch.float32)
    needed = _needed(numbers, dtype, models)
    had = []
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        free = available(device)
        if free >= needed:
            return Place(device=device, dtype=dtype, models=models)
        had.append(f"{describe_bytes(int(free))} on the GPU")
    host = free_host_memory()
    if host is not None and host >= needed:
        return Place(device=torch.device("cpu"), dtype=dtype, models=models)
    had.append("an unknown amount on the host" if host is None else f"{describe_bytes(host)} on the host")
    return (
        f"the model has {numbers / 1e9:.1f} G weights, which need {describe_bytes(needed)} of memory; free are "
        f"{' and '.join(had)}"
    )


def _needed(numbers: int, dtype: torch.dtype, models: int) -> int:
    return numbers * dtype.itemsize * models + _BESIDE


def free_host_memory() -> int | None:
    """Return the bytes that new processes can have without swapping; None where the system does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None
