"""What an optimizer keeps for each trained weight, measured on a small one."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from difftrain.contracts import OptimizerFactory

EDGE = 64
"""Of the square weight; its state is divided by the square of it, so that single numbers do not count."""


@cache
def optimizer_bytes(factory: OptimizerFactory, dtype: torch.dtype) -> float:
    """Return the bytes of state per trained weight after the first step, by taking it on the CPU.

    Args:
        dtype: Of the trained weights.
    """
    weight = nn.Parameter(torch.zeros(EDGE, EDGE, dtype=dtype))
    optimizer = factory.build([("weight", weight)], 1e-4)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = [part for part in tree_leaves(dict(optimizer.state)) if isinstance(part, Tensor)]
    return sum(part.nbytes for part in kept) / weight.numel()
