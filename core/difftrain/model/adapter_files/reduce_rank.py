"""Any change of a layer as the nearest LoRA of a rank, by singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difftrain.errors import CheckpointError, first_few
from difftrain.model.adapter_files.changes import Change, Factors, LowRank, kronecker_factors
from difftrain.types import Phase

if TYPE_CHECKING:
    from torch import Tensor

EXACT = 1024
"""Edge of a matrix up to which all singular values are computed; above, only those that are wanted."""
MORE = 16
"""Further singular values that are computed there, so that the wanted ones are exact."""
PASSES = 8


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """A LoRA and what it lacks."""

    change: LowRank
    error: float
    """Norm of the difference relative to the norm of the change (Frobenius); 0 is exact."""


def reduce_all(changes: Mapping[str, Change], rank: int, phase: Phase | None = None) -> dict[str, Reduced]:
    """Return the nearest LoRA of each change.

    Args:
        phase: Counts them.

    Raises:
        CheckpointError: If some are DoRA, which is more than an added matrix.
    """
    if lengths := [name for name, one in changes.items() if isinstance(one, LowRank) and one.lengths is not None]:
        raise CheckpointError(
            f"--as_lora: the lengths of a DoRA are no part of a LoRA: {len(lengths)} layers: {first_few(lengths)}\n"
            "hint: leave out --as_lora, or use --merge"
        )
    found = {}
    for name, change in changes.items():
        found[name] = reduced(change, rank)
        if phase:
            phase.advance(item=name)
    return found


def reduced(change: Change, rank: int) -> Reduced:
    """Return the nearest LoRA of a rank: the largest singular values (Eckart-Young), each divided between both factors.

    Those of a Kronecker product are the products of its factors'; LoHa of ranks r and s is exactly a LoRA of rank r*s.
    """
    import torch

    if isinstance(change, LowRank):
        if change.rank <= rank:
            return Reduced(change=change, error=0.0)
        return _of_product(change.up.float(), change.down.float(), rank)
    if change.kind == "LoKr" and change.span is None:
        return _of_kronecker(*kronecker_factors(change.tensors), change.scale, rank)
    if change.kind == "LoHa" and change.span is None:
        up, down = _loha_as_product(change)
        if down.shape[0] < min(len(up), down.shape[1]):
            return _of_product(up, down, rank)
    delta = change.delta()
    if min(delta.shape) <= EXACT:
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(delta, q=rank + MORE, niter=PASSES)
        right = right.mT
    found = _shared_out(left, values, right, rank)
    return Reduced(change=found, error=_lost(float(delta.norm()) ** 2, values[:rank]))


def _of_product(up: Tensor, down: Tensor, rank: int) -> Reduced:
    import torch

    outer, upper = torch.linalg.qr(up)
    inner, lower = torch.linalg.qr(down.mT)
    left, values, right = torch.linalg.svd(upper @ lower.mT)
    found = _shared_out(outer @ left, values, right @ inner.mT, rank)
    return Reduced(change=found, error=_lost(float((values.double() ** 2).sum()), values[:rank]))


def _of_kronecker(first: Tensor, second: Tensor, scale: float, rank: int) -> Reduced:
    import torch

    parts = [torch.linalg.svd(factor, full_matrices=False) for factor in (first, second)]
    (left1, values1, right1), (left2, values2, right2) = parts
    products = torch.outer(values1, values2).flatten()
    kept = products.topk(min(rank, len(products))).indices
    one, two = kept // len(values2), kept % len(values2)
    left = torch.stack([torch.kron(left1[:, i], left2[:, j]) for i, j in zip(one, two, strict=True)], dim=1)
    right = torch.stack([torch.kron(right1[i], right2[j]) for i, j in zip(one, two, strict=True)])
    values = products[kept]
    found = _shared_out(left * math.copysign(1.0, scale), values * abs(scale), right, rank)
    return Reduced(change=found, error=_lost(float((products.double() ** 2).sum()), values))


def _loha_as_product(change: Factors) -> tuple[Tensor, Tensor]:
    part = {name: tensor.float() for name, tensor in change.tensors.items()}
    up = (part["hada_w1_a"][:, :, None] * part["hada_w2_a"][:, None, :]).flatten(1)
    down = (part["hada_w1_b"][:, None, :] * part["hada_w2_b"][None, :, :]).flatten(0, 1)
    return up * change.scale, down


def _shared_out(left: Tensor, values: Tensor, right: Tensor, rank: int) -> LowRank:
    roots = values[:rank].sqrt()
    return LowRank(down=(roots[:, None] * right[:rank]).contiguous(), up=(left[:, :rank] * roots).contiguous())


def _lost(whole: float, kept: Tensor) -> float:
    """Return the relative norm of what the kept singular values leave out.

    Args:
        whole: The squares of all of them, added.
    """
    rest = whole - float((kept.double() ** 2).sum())
    return math.sqrt(max(rest, 0.0) / whole) if whole > 0 else 0.0
