"""The state of any torch optimizer in one file: exact, by the names of its parameters, unsharded.

Torch writes it, and reading it runs no code from it. :func:`gather_optimizer` is for every process,
:func:`write_optimizer` for the first.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difftrain.errors import CheckpointError, first_few
from difftrain.steps.sharding import is_sharded, placed_like, whole

Settings = Sequence[Mapping[str, Any]]
"""Each parameter group's values besides its parameters: rates, decays, ..."""
Named = Sequence[tuple[str, Tensor]]
"""Trained parameters with their names in the model."""
_NO_SETTINGS = ("params", "param_names")
"""Entries of a group that describe its parameters; the rest are settings."""


class DamagedState(CheckpointError):
    """The file cannot be read."""


def bare(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that its factory built, without accelerate's wrapper."""
    built: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return built


def settings_of(optimizer: torch.optim.Optimizer) -> Settings:
    """Return copies of the plain settings of each group; only numbers, texts and tensors are included."""
    return [
        {key: copy.deepcopy(value) for key, value in group.items() if key not in _NO_SETTINGS and _is_plain(value)}
        for group in optimizer.param_groups
    ]


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


def gather_optimizer(
    optimizer: torch.optim.Optimizer, named: Named, built_with: Settings, *, keep: bool = True
) -> dict[str, Any]:
    """Return what :func:`write_optimizer` writes.

    Every process must call it; they wait for each other only if something is sharded.

    Args:
        built_with: The settings that the optimizer was built with, to tell later which of them the user has changed.
        keep: False in a process that only contributes its parts: its result has none of the sharded tensors.
    """
    names = _names(optimizer, named)
    saved = optimizer.state_dict()
    state = {names[key]: value for key, value in saved["state"].items() if _is_number(key, names)}
    groups = [
        {
            "parameters": [names[number] for number in group["params"]],
            "built_with": dict(before),
            "settings": {key: value for key, value in group.items() if key not in _NO_SETTINGS},
        }
        for group, before in zip(saved["param_groups"], built_with, strict=True)
    ]
    return {
        "optimizer": _class_name(optimizer),
        "parameters": dict(zip(names, map(_shape, _each_parameter(optimizer)), strict=True)),
        "groups": _gathered(groups, keep),
        "sharded": [name for name, value in state.items() if _any_sharded(value)],
        "state": {name: _gathered(value, keep) for name, value in state.items()},
        "more": {key: _gathered(value, keep) for key, value in saved["state"].items() if not _is_number(key, names)},
    }


def write_optimizer(gathered: Mapping[str, Any], path: Path) -> None:
    """Write the result of :func:`gather_optimizer` and read it back, so that every checkpoint can be resumed.

    Raises:
        OSError: If the file cannot be written.
        CheckpointError: If the optimizer keeps something that torch cannot store or would not read back.
    """
    try:
        with path.open("wb") as file:
            torch.save(gathered, file)
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # mapped: it may not fit in memory twice
    except (pickle.PickleError, AttributeError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        if isinstance(error.__context__, OSError):  # torch's own message for a full disk gives no reason
            raise error.__context__ from error
        raise CheckpointError(_cannot_hold(gathered["optimizer"], error)) from error


def check_storable(gathered: Mapping[str, Any], path: Path) -> None:
    """Write the state, read it back, delete it: to find a problem now, not at the first checkpoint.

    Raises:
        OSError: If the file cannot be written.
        CheckpointError: If it cannot be read back.
    """
    try:
        write_optimizer(gathered, path)
    finally:
        path.unlink(missing_ok=True)


def load_optimizer(optimizer: torch.optim.Optimizer, named: Named, path: Path) -> None:
    """Restore what :func:`write_optimizer` wrote, bit for bit. Settings that the user has changed stay this run's.

    Args:
        optimizer: Freshly built with this run's settings; its parameters may be sharded in another way than before.

    Raises:
        DamagedState: If the file is damaged.
        CheckpointError: If it belongs to another optimizer or other parameters, or needs code to be restored.
    """
    parameters, names = _each_parameter(optimizer), _names(optimizer, named)
    home = parameters[0].device

    def placed(storage: Any, location: str) -> Any:
        # some optimizers count steps in a tensor on the CPU, even for parameters on a GPU
        return storage if location == "cpu" or home.type == "cpu" else storage.to(device=home)

    try:
        content = torch.load(path, map_location=placed, weights_only=True)
        class_name, shapes, groups = content["optimizer"], content["parameters"], content["groups"]
        sharded, by_name, more = set(content["sharded"]), content["state"], content["more"]
    except pickle.UnpicklingError as error:
        raise CheckpointError(_cannot_hold(_class_name(optimizer), error)) from error
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError) as error:
        raise DamagedState(f"the optimizer's state cannot be read ({error})") from error
    _check_fit(optimizer, names, class_name=class_name, shapes=shapes, groups=[group["parameters"] for group in groups])
    state = {
        number: _placed(by_name[name], parameters[number], was_sharded=name in sharded)
        for number, name in enumerate(names)
        if name in by_name
    }
    now = settings_of(optimizer)
    fresh = optimizer.state_dict()["param_groups"]
    own = [{key: group[key] for key in _NO_SETTINGS if key in group} for group in fresh]
    restored = [{**ours, **group["settings"]} for ours, group in zip(own, groups, strict=True)]
    optimizer.load_state_dict({"state": {**more, **state}, "param_groups": restored})
    # torch casts state to the parameter's dtype on loading, but an optimizer may keep it in another one
    for number, entries in state.items():
        if isinstance(entries, dict):
            optimizer.state[parameters[number]].update(entries)
    for group, saved, after in zip(optimizer.param_groups, groups, now, strict=True):
        before = saved["built_with"]
        group.update({key: value for key, value in after.items() if not _same(before.get(key), value)})


def _any_sharded(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_any_sharded, value.values()))
    return any(map(_any_sharded, value)) if isinstance(value, list | tuple) else is_sharded(value)


def _gathered(value: Any, keep: bool) -> Any:
    """Gather every sharded tensor onto the CPU, or replace it with None; return other values unchanged."""
    if not _any_sharded(value):
        return value
    if isinstance(value, dict):
        return {key: _gathered(part, keep) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_gathered(part, keep) for part in value])
    full = whole(value)
    return full.cpu() if keep else None


def _placed(value: Any, parameter: Tensor, *, was_sharded: bool) -> Any:
    """Place the state of one parameter: cut it like a sharded parameter; if it was cut, on the parameter's device.

    A single number stays unchanged, because optimizers count steps in one.
    """
    if isinstance(value, dict):
        return {key: _placed(part, parameter, was_sharded=was_sharded) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_placed(part, parameter, was_sharded=was_sharded) for part in value])
    if not isinstance(value, Tensor) or value.ndim == 0 or not (was_sharded or is_sharded(parameter)):
        return value
    return placed_like(value, parameter)


def _same(one: object, other: object) -> bool:
    """Return whether plain values are equal; NaN equals itself."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one.cpu(), other.cpu()))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _cannot_hold(class_name: str, reason: object) -> str:
    # torch's message goes on with advice to turn the protection off
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    named = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    named = named.removeprefix("WeightsUnpickler error: ")
    return (
        f"optimizer {class_name} keeps something that a checkpoint cannot hold: {named}\n"
        "hint: use another optimizer; its author can keep tensors and plain values, or allow the type with "
        "torch.serialization.add_safe_globals"
    )


def _check_fit(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    *,
    class_name: str,
    shapes: Mapping[str, str],
    groups: Sequence[Sequence[str]],
) -> None:
    if class_name != _class_name(optimizer):
        raise CheckpointError(
            f"the checkpoint's optimizer is {class_name}, this run's is {_class_name(optimizer)}\n"
            "hint: resume with the optimizer that the checkpoint was trained with, or start over with "
            "--resume_from_checkpoint none"
        )
    own = dict(zip(names, map(_shape, _each_parameter(optimizer)), strict=True))
    different = [
        f"{name} was {shapes.get(name, 'not there')} and is now {own.get(name, 'not there')}"
        for name in dict.fromkeys([*shapes, *own])
        if shapes.get(name) != own.get(name)
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint's optimizer has {len(shapes)} parameters, this run's has {len(own)}; of them "
            f"{len(different)} differ: {first_few(different, 1)}\n"
            "hint: resume with the adapter and the mixed_precision that the checkpoint was trained with"
        )
    numbers = iter(names)
    now = [{next(numbers) for _ in group["params"]} for group in optimizer.param_groups]
    if now != [set(group) for group in groups]:
        raise CheckpointError(
            f"the checkpoint's optimizer has {len(groups)} parameter groups, this run's has {len(now)} or divides "
            "them differently\nhint: resume with the optimizer_config that the checkpoint was trained with"
        )


def _each_parameter(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return parameters in the order in which a state dict counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _names(optimizer: torch.optim.Optimizer, named: Named) -> list[str]:
    """Return each parameter's name; one that is not the model's, such as a copy in another format, gets its number."""
    by_id = {id(parameter): name for name, parameter in named}
    return [by_id.get(id(own), f"#{number}") for number, own in enumerate(_each_parameter(optimizer))]


def _is_number(key: object, names: Sequence[str]) -> bool:
    """Return whether a state dict's key stands for a parameter; an optimizer may keep other entries too."""
    return type(key) is int and key < len(names)


def _shape(parameter: Tensor) -> str:
    return f"{str(parameter.dtype).removeprefix('torch.')}{list(parameter.shape)}"


def _class_name(optimizer: torch.optim.Optimizer) -> str:
    """Return module and name of the optimizer's class."""
    cls = type(bare(optimizer))
    return f"{cls.__module__}.{cls.__qualname__}"
