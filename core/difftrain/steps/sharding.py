"""Tensors of which every process holds a part: put together, and cut again. A tensor that is whole stays as it is."""

from __future__ import annotations

import sys

from torch import Tensor, nn


def is_sharded(value: object) -> bool:
    """Whether it is a DTensor, in whatever placement."""
    # whoever made one has imported the module; a run of one process does without that second
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on this process's device; all processes must ask for it, in one order."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def placed_like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, known to every process, on the device of ``model``; if that is sharded, this process's part.

    Nothing is exchanged. Where the shapes differ, a sharded tensor would not know where to be cut: every process
    then has the whole.
    """
    if not is_sharded(model):
        return tensor.to(model.device)
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    assert isinstance(model, DTensor), "is_sharded has said so"
    alike = tensor.shape == model.shape
    placements = model.placements if alike else [Replicate()] * model.device_mesh.ndim
    return distribute_tensor(tensor.to(model.device), model.device_mesh, placements, src_data_rank=None)


def release_whole_weights(model: nn.Module) -> None:
    """Leave each process with its parts again, after forwards that no backward followed.

    torch puts a sharded model's weights together for a forward, and takes them apart in the backward. In between, the
    model's parameters are others than the optimizer's.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
