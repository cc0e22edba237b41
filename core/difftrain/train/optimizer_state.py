"""The state of any torch optimizer in two plain files: tensors as safetensors, the rest as JSON. Exact, no pickle.

Every value lies under a flat key: ``state/0/exp_avg`` belongs to the first parameter, ``param_groups/0/lr`` to the
first group. The JSON names all of them, and says of what was a tensor only where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from difftrain.errors import CheckpointError, first_few

TENSORS_FILE = "optimizer.safetensors"
VALUES_FILE = "optimizer.json"


class DamagedState(CheckpointError):
    """Files that cannot be read, or do not belong together."""


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write both files.

    Raises:
        CheckpointError: If the optimizer keeps something that is neither a tensor nor a plain value.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in _flat(optimizer.state_dict()).items():
        if isinstance(value, Tensor):
            # copies, since safetensors refuses tensors that share memory
            tensors[key] = value.detach().to("cpu", copy=True).contiguous()
            values[key] = {"tensor": value.device.type}
        else:
            values[key] = _as_json(key, value)
    save_file(tensors, folder / TENSORS_FILE)
    told = {"optimizer": _kind(optimizer), "parameters": _parameters(optimizer), "values": values}
    (folder / VALUES_FILE).write_text(json.dumps(told))


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put back what :func:`save_optimizer` wrote, bit for bit, settings of the groups included.

    Raises:
        DamagedState: If the files are damaged.
        CheckpointError: If they are of another optimizer or other parameters.
    """
    try:
        told = json.loads((folder / VALUES_FILE).read_text())
        tensors = load_file(folder / TENSORS_FILE)
        kind, parameters, values = told["optimizer"], told["parameters"], dict(told["values"])
        _check_tensors(tensors, values)
        _check_fit(optimizer, kind, parameters)
        home = optimizer.param_groups[0]["params"][0].device
        flat = {key: _from_json(value, tensors.get(key), home) for key, value in values.items()}
        _restore(optimizer, _nested(flat))
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DamagedState(f"the optimizer's state cannot be read ({error})") from error


def _flat(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    entries = {("state", index): entry for index, entry in state_dict["state"].items()}
    entries |= {("param_groups", index): group for index, group in enumerate(state_dict["param_groups"])}
    return {
        f"{part}/{index}/{name}": value for (part, index), entry in entries.items() for name, value in entry.items()
    }


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    parts: dict[str, dict[int, dict[str, Any]]] = {"state": {}, "param_groups": {}}
    for key, value in flat.items():
        part, index, name = key.split("/", 2)
        parts[part].setdefault(int(index), {})[name] = value
    groups = parts["param_groups"]
    return {"state": parts["state"], "param_groups": [groups[index] for index in range(len(groups))]}


def _as_json(key: str, value: object) -> Any:
    """A value as JSON keeps it; a tuple is told from a list."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_as_json(key, item) for item in value]}
    if isinstance(value, list):
        return [_as_json(key, item) for item in value]
    raise CheckpointError(f"the optimizer keeps {key} as {type(value).__name__}, which a checkpoint cannot hold")


def _from_json(value: Any, tensor: Tensor | None, home: torch.device) -> Any:
    if tensor is not None:
        # some optimizers count steps in a tensor on the CPU, also for parameters on a GPU
        return tensor if value["tensor"] == "cpu" else tensor.to(home)
    if isinstance(value, dict):
        return tuple(_from_json(item, None, home) for item in value["tuple"])
    if isinstance(value, list):
        return [_from_json(item, None, home) for item in value]
    return value


def _check_tensors(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    named = {key for key, value in values.items() if isinstance(value, dict) and "tensor" in value}
    if different := sorted(named ^ set(tensors)):
        raise ValueError(f"{len(different)} tensors are in one of its files only: {first_few(different)}")


def _check_fit(optimizer: torch.optim.Optimizer, kind: str, parameters: Sequence[str]) -> None:
    if kind != _kind(optimizer):
        raise CheckpointError(
            f"the checkpoint's optimizer is {kind}, this run's is {_kind(optimizer)}\n"
            "hint: resume with the optimizer that the checkpoint was made with, or start anew with "
            "--resume_from_checkpoint none"
        )
    own = _parameters(optimizer)
    different = [f"{saved} is now {now}" for saved, now in zip(parameters, own, strict=False) if saved != now]
    if len(parameters) != len(own) or different:
        raise CheckpointError(
            f"the checkpoint's optimizer has {len(parameters)} parameters, this run's has {len(own)}; of them "
            f"{len(different)} differ: {first_few(different, 1) or 'none'}\n"
            "hint: resume with the adapter and the mixed_precision that the checkpoint was made with"
        )


def _restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    lacking = [
        name
        for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=False)
        for name in own
        if name not in group
    ]
    if lacking:
        raise ValueError(f"settings are missing: {first_few(lacking)}")
    optimizer.load_state_dict(saved)
    # torch casts state to the parameter's dtype on loading; an optimizer may keep it in another one
    parameters = _each_parameter(optimizer)
    for index, state in saved["state"].items():
        optimizer.state[parameters[index]].update(state)


def _each_parameter(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order in which a state dict counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parameters(optimizer: torch.optim.Optimizer) -> list[str]:
    return [
        f"{str(parameter.dtype).removeprefix('torch.')}{list(parameter.shape)}"
        for parameter in _each_parameter(optimizer)
    ]


def _kind(optimizer: torch.optim.Optimizer) -> str:
    """Module and name of the optimizer's class, below what accelerate puts around it."""
    bare = getattr(optimizer, "optimizer", optimizer)
    return f"{type(bare).__module__}.{type(bare).__qualname__}"
