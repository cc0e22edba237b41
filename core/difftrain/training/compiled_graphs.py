"""What torch.compile finds in its cache: which graphs may be used again, and how many were."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.compiler.config
from torch._dynamo.utils import counters

from difftrain.machine.compile_cache import folder_of_compiled
from difftrain.model.attention.choose_kernel import kernels_in_force
from difftrain.output.console import duration


def tell_graphs_apart(dtype: torch.dtype) -> None:
    """Let torch.compile use only graphs again that were made with the same attention kernels and number format.

    Its cache knows a graph by the call of the attention, not by the kernel that torch takes for it: without this a run
    with the kernel ``math`` gets ``flash`` from the cache (torch 2.13).
    """
    users = os.environ.get("TORCH_COMPILE_CACHE_KEY_TAG", "")
    torch.compiler.config.cache_key_tag = f"{users} {kernels_in_force()} {dtype}".strip()


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """What torch had compiled when this compiling began."""

    began: float
    """In seconds, of a clock that only runs forward."""
    found: int
    """Graphs from the cache, so far in this process."""
    made: int
    folder: Path | None
    """Where graphs are kept; None if they are not."""
    is_new: bool
    """Whether nothing was in that folder."""

    @classmethod
    def begin(cls) -> Compiling:
        folder, seen = folder_of_compiled(), counters["inductor"]
        return cls(
            began=time.monotonic(),
            found=seen["fxgraph_cache_hit"],
            made=seen["fxgraph_cache_miss"],
            folder=folder,
            is_new=folder is not None and not any(folder.iterdir()),
        )

    def summary(self, shapes: int) -> str:
        """Return what to tell the user when the blocks are compiled for so many batch shapes."""
        seen = counters["inductor"]
        found, made = seen["fxgraph_cache_hit"] - self.found, seen["fxgraph_cache_miss"] - self.made
        what = "1 batch shape" if shapes == 1 else f"{shapes} batch shapes"
        text = f"compiling for {what} took {duration(time.monotonic() - self.began)}"
        if self.folder is None or not found + made:
            return text
        if self.is_new:
            return f"{text}; the next run finds the code in {self.folder}"
        return f"{text}; {found} of {found + made} graphs were in {self.folder}"
