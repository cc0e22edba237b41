"""Whether the weights of a checkpoint are those that a run trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from difftrain.errors import CheckpointError, first_few

if TYPE_CHECKING:
    from torch import Tensor


def check_same_weights(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], problem: str, hint: str) -> None:
    """Compare names and shapes.

    Args:
        problem: What to say of those that differ; their number stands before it.

    Raises:
        CheckpointError: Names the first few.
    """
    different = sorted(own.keys() ^ saved.keys())
    different += [name for name in own if name in saved and own[name].shape != saved[name].shape]
    if different:
        raise CheckpointError(f"{len(different)} {problem}: {first_few(different)}\nhint: {hint}")
