"""Gathers and cuts tensors of which every process holds a part. Unsharded tensors stay unchanged."""

from __future__ import annotations

import sys

from torch import Tensor, nn


def is_sharded(value: object) -> bool:
    """Return whether a value is a DTensor, in any placement."""
    # a DTensor exists only if the module is imported; importing it would cost a single-process run a second
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor, on this process's device; all processes must call it in the same order."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def placed_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor, known to every process, on the device of ``model``; if that is sharded, our part of it.

    Nothing is exchanged. If the shapes differ, it is unknown where to cut a sharded tensor: every process then has
    the whole.
    """
    if not is_sharded(model):
        return tensor.to(model.device)
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    assert isinstance(model, DTensor), "is_sharded has said so"
    alike = tensor.shape == model.shape
    placements = model.placements if alike else [Replicate()] * model.device_mesh.ndim
    return distribute_tensor(tensor.to(model.device), model.device_mesh, placements, src_data_rank=None)


def release_whole_weights(model: nn.Module) -> None:
    """Leave each process with only its parts again, after forwards without a backward.

    torch gathers a sharded model's weights for a forward and splits them in the backward. In between, the
    model's parameters are not the optimizer's.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
