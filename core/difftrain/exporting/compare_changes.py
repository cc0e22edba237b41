"""Whether two sets of changes do the same to a model's layers, layer by layer; needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from difftrain.model.adapter_files.changes import Change, LowRank

INPUTS = 8
"""Random inputs that each layer gets."""
NOTHING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The largest relative difference of a layer's outputs, and where it is."""

    module: str
    difference: float


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the relative difference that rounding to a dtype explains."""
    return max(4 * torch.finfo(dtype).eps, 1e-5)


def worst_difference(wanted: Mapping[str, Change], found: Mapping[str, Change]) -> Worst:
    """Compare what changes add to the outputs of each module, for the same random inputs.

    A change that one side lacks counts as whole, unless it does nothing.
    """
    worst = Worst(module="", difference=0.0)
    for module in dict.fromkeys([*wanted, *found]):
        one, other = wanted.get(module), found.get(module)
        some = one or other
        assert some is not None, "the name comes from one of them"
        inputs = torch.randn(_width(some), INPUTS, generator=torch.Generator().manual_seed(0))
        first = None if one is None else _effect(one, inputs)
        second = None if other is None else _effect(other, inputs)
        difference = _relative(first, second)
        if difference > worst.difference:
            worst = Worst(module=module, difference=difference)
    return worst


def _width(change: Change) -> int:
    return int(change.down.shape[1] if isinstance(change, LowRank) else change.delta().shape[1])


def _effect(change: Change, inputs: Tensor) -> Tensor:
    if not isinstance(change, LowRank):
        effect, bias = change.delta() @ inputs, change.bias()
        return effect if bias is None else torch.cat([effect, bias[:, None]], dim=1)
    effect = change.up.float() @ (change.down.float() @ inputs)
    return effect if change.lengths is None else torch.cat([effect, change.lengths.float()[:, None]], dim=1)


def _relative(first: Tensor | None, second: Tensor | None) -> float:
    if first is None or second is None:
        whole = second if first is None else first
        assert whole is not None, "one of them is there"
        return 1.0 if float(whole.norm()) > NOTHING else 0.0
    if first.shape != second.shape:
        return float("inf")
    difference, size = float((first - second).norm()), float(first.norm())
    return difference / size if size > NOTHING else difference
