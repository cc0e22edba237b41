"""The weights that a LoRA begins with, from a file of any layout: ``init_lora``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.contracts import ModelFamily
from difftrain.errors import CheckpointError, ConfigError, MachineError, ModelError, first_few
from difftrain.machine.retries import refusal
from difftrain.model.adapter_files.changes import Factors, LowRank
from difftrain.model.adapter_files.describe_adapter import what_is
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.read_changes import read_changes
from difftrain.model.single_files.safetensors_header import read_header

if TYPE_CHECKING:
    from torch import Tensor, nn


def first_lora(file: Path, family: ModelFamily, modules: Iterable[str]) -> dict[str, Tensor]:
    """Return the weights of a file for strength 1, named as peft names them in a model: ``MODULE.lora_A.weight``.

    Args:
        modules: Full names of the model's modules.

    Raises:
        ConfigError: If it is no LoRA of this model; says what it is.
        MachineError: If it cannot be read.
    """
    try:
        read_header(file)
        content = read_changes(file, LayerNames(family, [*modules]))
    except CheckpointError as error:
        found = what_is(file, family.lora_prefix)
        problem, _, hint = str(error).partition("\n")
        why = problem.replace(f"{file}: ", "", 1).replace(f"{file} ", "it ", 1)
        raise ConfigError(f"init_lora {file} is no LoRA of this model: it is {found}; {why}\n{hint}") from error
    except ModelError as error:
        raise ConfigError(f"init_lora {error}") from error
    except OSError as error:
        raise MachineError(refusal(f"init_lora {file} cannot be read", error)) from error
    if content.encoder_tensors:
        raise ConfigError(
            f"init_lora {file} also changes text encoders, which this run does not train: "
            f"{first_few(content.encoder_tensors)}\n"
            f"hint: leave them out: difftrain export {file} --output without-encoders.safetensors"
        )
    weights: dict[str, Tensor] = {}
    for module, change in content.changes.items():
        if isinstance(change, Factors):
            raise ConfigError(
                f"init_lora {file} is no LoRA: it is {what_is(file, family.lora_prefix)}\n"
                f"hint: turn it into one: difftrain export {file} --as_lora RANK --output lora.safetensors"
            )
        weights |= _named(module, change)
    return weights


def _named(module: str, change: LowRank) -> dict[str, Tensor]:
    lengths = {} if change.lengths is None else {f"{module}.lora_magnitude_vector.weight": change.lengths}
    return {f"{module}.lora_A.weight": change.down, f"{module}.lora_B.weight": change.up, **lengths}


def check_sizes(file: Path, weights: Mapping[str, Tensor], modules: Mapping[str, nn.Module]) -> None:
    """Check that weights fit the layers that they are for.

    Raises:
        ConfigError: Names the first layer and both sizes.
    """
    for name, tensor in weights.items():
        module, _, part = name.partition(".lora_")
        wanted = getattr(modules[module], "in_features" if part == "A.weight" else "out_features", None)
        found = tensor.shape[1] if part == "A.weight" else tensor.shape[0]
        if wanted is not None and found != wanted:
            takes = "takes" if part == "A.weight" else "gives"
            raise ConfigError(
                f"init_lora {file} is for a model of another size: {module} {takes} {found} numbers there, and "
                f"{wanted} in this model\nhint: `difftrain identify {file}` says what it is"
            )


def filled_up(first: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of the adapter's rank: layers of a lower one go on with the adapter's own A, and B zero.

    Fused layers of original names give their parts other ranks than single ones.

    Args:
        first: The file's weights.
        begun: The adapter's own, as they were drawn.
    """
    found = {}
    for name, tensor in first.items():
        whole = tensor
        if tensor.shape != begun[name].shape and ".lora_A." in name:
            whole = begun[name].clone().to(tensor.dtype)
            whole[: len(tensor)] = tensor.to(whole.device)
        elif tensor.shape != begun[name].shape and ".lora_B." in name:
            whole = begun[name].new_zeros(begun[name].shape).to(tensor.dtype)
            whole[:, : tensor.shape[1]] = tensor.to(whole.device)
        found[name] = whole
    return found
