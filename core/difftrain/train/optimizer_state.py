"""The state of any torch optimizer in one file, exact; written by torch, read without running anything of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difftrain.errors import CheckpointError, first_few

Settings = Sequence[Mapping[str, Any]]
"""What each parameter group says beside its parameters: rates, decays, ..."""


class DamagedState(CheckpointError):
    """A file that cannot be read."""


def settings_of(optimizer: torch.optim.Optimizer) -> Settings:
    """Copies of the plain settings of each group as they are now; what is no number, text or tensor is left out."""
    return [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params" and _is_plain(value)}
        for group in optimizer.param_groups
    ]


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


def save_optimizer(optimizer: torch.optim.Optimizer, built_with: Settings, path: Path) -> None:
    """Write the state and read it back, so that no checkpoint holds what cannot be resumed.

    Args:
        built_with: The settings that the optimizer was built with, to tell later which of them the user changed.

    Raises:
        OSError: If the file cannot be written.
        CheckpointError: If the optimizer keeps what torch cannot store or would not read back.
    """
    told = {
        "optimizer": _kind(optimizer),
        "parameters": _parameters(optimizer),
        "built_with": [dict(group) for group in built_with],
        "state": optimizer.state_dict(),
    }
    try:
        with path.open("wb") as file:
            torch.save(told, file)
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        if isinstance(error.__context__, OSError):  # torch's own words for a full disk name no reason
            raise error.__context__ from error
        raise CheckpointError(_cannot_hold(optimizer, error)) from error


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Put back what :func:`save_optimizer` wrote, bit for bit. A setting that the user changed is this run's.

    Args:
        optimizer: Freshly built with this run's settings.

    Raises:
        DamagedState: If the file is damaged.
        CheckpointError: If it is of another optimizer or other parameters, or holds what only code could make.
    """
    home = optimizer.param_groups[0]["params"][0].device

    def placed(storage: Any, location: str) -> Any:
        # some optimizers count steps in a tensor on the CPU, also for parameters on a GPU
        return storage if location == "cpu" or home.type == "cpu" else storage.to(device=home)

    try:
        told = torch.load(path, map_location=placed, weights_only=True)
        kind, parameters, built_with, state = (told[key] for key in ("optimizer", "parameters", "built_with", "state"))
    except pickle.UnpicklingError as error:
        raise CheckpointError(_cannot_hold(optimizer, error)) from error
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError) as error:
        raise DamagedState(f"the optimizer's state cannot be read ({error})") from error
    _check_fit(optimizer, kind, parameters, groups=len(built_with))
    now = settings_of(optimizer)
    optimizer.load_state_dict(state)
    # torch casts state to the parameter's dtype on loading; an optimizer may keep it in another one
    by_number = _each_parameter(optimizer)
    for number, entries in state["state"].items():
        # an optimizer may keep more than what belongs to a parameter; torch has put that back as it is
        if isinstance(number, int) and isinstance(entries, dict):
            optimizer.state[by_number[number]].update(entries)
    for group, before, after in zip(optimizer.param_groups, built_with, now, strict=True):
        group.update({key: value for key, value in after.items() if not _same(before.get(key), value)})


def check_storable(optimizer: torch.optim.Optimizer, built_with: Settings, path: Path) -> None:
    """Write the state, read it back, take it away: found now, and not at the first checkpoint.

    Raises:
        OSError: If the file cannot be written.
        CheckpointError: If it would not come back.
    """
    try:
        save_optimizer(optimizer, built_with, path)
    finally:
        path.unlink(missing_ok=True)


def _same(one: object, other: object) -> bool:
    """Equal plain values; NaN is equal to itself."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one.cpu(), other.cpu()))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _cannot_hold(optimizer: torch.optim.Optimizer, reason: object) -> str:
    # torch's complaint goes on with advice to turn the protection off
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    named = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    named = named.removeprefix("WeightsUnpickler error: ")
    return (
        f"optimizer {_kind(optimizer)} keeps what a checkpoint cannot hold: {named}\n"
        "hint: take another optimizer; its author can keep tensors and plain values, or name the type with "
        "torch.serialization.add_safe_globals"
    )


def _check_fit(optimizer: torch.optim.Optimizer, kind: str, parameters: Sequence[str], *, groups: int) -> None:
    if kind != _kind(optimizer):
        raise CheckpointError(
            f"the checkpoint's optimizer is {kind}, this run's is {_kind(optimizer)}\n"
            "hint: resume with the optimizer that the checkpoint was made with, or start anew with "
            "--resume_from_checkpoint none"
        )
    if groups != len(optimizer.param_groups):
        raise CheckpointError(
            f"the checkpoint's optimizer has {groups} groups of parameters, this run's has "
            f"{len(optimizer.param_groups)}\nhint: resume with the optimizer_config that the checkpoint was made with"
        )
    own = _parameters(optimizer)
    different = [f"{saved} is now {now}" for saved, now in zip(parameters, own, strict=False) if saved != now]
    if len(parameters) != len(own) or different:
        raise CheckpointError(
            f"the checkpoint's optimizer has {len(parameters)} parameters, this run's has {len(own)}; of them "
            f"{len(different)} differ: {first_few(different, 1) or 'none'}\n"
            "hint: resume with the adapter and the mixed_precision that the checkpoint was made with"
        )


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
