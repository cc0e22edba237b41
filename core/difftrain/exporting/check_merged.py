"""Whether a merged model has the base weights with the changes added; two tensors are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from difftrain.errors import CheckpointError, first_few
from difftrain.model.adapter_files.changes import Change, LowRank, bias_of
from difftrain.model.shards import read_tensor, weight_files
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.types import Phase

_SUMMED = 1e-5
"""Difference relative to a tensor's largest number that sums in float32 explain."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was compared."""

    changed: int
    """Tensors with a change, each equal to base + change but for one rounding."""
    same: int
    """All others, each equal byte for byte."""
    worst: float
    """The largest difference of a changed number, relative to the largest of its tensor."""


def check_merged(
    folder: Path,
    base: Iterable[tuple[str, Tensor]],
    changes: Mapping[str, Change],
    dtype: torch.dtype | None,
    phase: Phase,
) -> Checked:
    """Read every written tensor, and compare it with the base model's and its change.

    Args:
        folder: Where the merged weights are.
        base: The weights before, by name.
        changes: By the names of their layers.
        dtype: Number format that was asked for; None keeps each tensor's.

    Raises:
        CheckpointError: Names the tensors that are wrong, missing or too many.
        ModelError: If a file is damaged.
    """
    places = {name: file for file in weight_files(folder) for name in read_header(file).tensors}
    wrong: list[str] = []
    counted, same, worst = 0, 0, 0.0
    for name, before in base:
        module, _, part = name.rpartition(".")
        change = changes.get(module) if part in ("weight", "bias") else None
        if change is not None and part == "bias" and bias_of(change) is None:
            change = None
        file = places.pop(name, None)
        if file is None:
            wrong.append(f"{name} is missing")
        elif change is None:
            same += 1
            if not _same_bytes(read_tensor(file, name), before.to(dtype or before.dtype)):
                wrong.append(f"{name} has changed")
        else:
            counted += part == "weight"
            difference, explained = _difference(
                read_tensor(file, name), _wanted(before, change, part), dtype or before.dtype
            )
            worst = max(worst, difference)
            if not difference <= explained:  # also NaN
                wrong.append(f"{name} is off by {difference:.1e} of its largest number")
        phase.advance(item=name)
    wrong += [f"{name} is no weight of the model" for name in places]
    if lost := len(changes) - counted:
        wrong.append(f"{lost} changes are in no weight")
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} of its weights are not the base model's with the change: {first_few(wrong)}"
        )
    return Checked(changed=counted, same=same, worst=worst)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))


def _wanted(before: Tensor, change: Change, part: str) -> Tensor:
    """Return base + change in float64."""
    wanted = before.double()
    if part == "bias":
        added = bias_of(change)
        assert added is not None, "asked before"
        wanted += added
    elif isinstance(change, LowRank):
        wanted += change.up.double() @ change.down.double()
        if change.lengths is not None:
            wanted *= (change.lengths.double() / wanted.norm(dim=1))[:, None]
    else:
        wanted += change.delta()
    return wanted


def _difference(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return the largest difference of two tensors, and the one that rounding explains.

    Both are relative to the largest number.
    """
    if found.dtype != dtype or found.shape != wanted.shape:
        return float("inf"), 0.0
    largest = max(float(wanted.abs().max()), torch.finfo(torch.float32).tiny)
    return float((found.double() - wanted).abs().max()) / largest, torch.finfo(dtype).eps / 2 + _SUMMED
