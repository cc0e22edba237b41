"""Tests that the layers which a family says to share their input do so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from difftrain.contracts import ModelFamily

if TYPE_CHECKING:
    from torch import Tensor, nn


def check_sharing(family: ModelFamily, denoiser: nn.Module, predict: Callable[[nn.Module], Tensor]) -> None:
    """Assert that each group of ``shared_input_linears()`` is one product of each call of its parent module.

    Args:
        denoiser: A model whose layers may be fused for it.
        predict: One forward, the same each time.

    Raises:
        AssertionError: Names the group.
    """
    import torch

    from difftrain.model.fused.fuse_linears import fuse_linears
    from difftrain.model.fused.fused_layers import FusedLinear

    groups = family.shared_input_linears(denoiser)
    if not groups:
        return
    plain = predict(denoiser)
    fuse_linears(denoiser, groups)
    calls: Counter[str] = Counter()

    def count(name: str, *_others: Any) -> None:
        calls[name] += 1

    fused = {name: part for name, part in denoiser.named_modules() if isinstance(part, FusedLinear)}
    for name, part in fused.items():
        part.register_forward_hook(partial(count, name))
        owner = name.rpartition(".")[0]
        denoiser.get_submodule(owner).register_forward_hook(partial(count, f"parent of {name}"))
    assert torch.allclose(predict(denoiser), plain, atol=1e-5), "shared_input_linears(): fusing changes the prediction"
    for name in fused:
        assert calls[name] == calls[f"parent of {name}"], (
            f"shared_input_linears(): {name} is computed {calls[name]} times in {calls[f'parent of {name}']} calls of "
            "its parent, so its layers do not share their input"
        )
