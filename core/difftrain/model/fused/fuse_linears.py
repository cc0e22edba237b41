"""Puts frozen linear layers with a common input together, so that each group runs as one product.

To be called before an adapter is attached. The layers keep their names, so an adapter wraps each of them as ever: it
has the same weights, initial values and files as without.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn

from difftrain.errors import PluginError
from difftrain.model.fused.fused_layers import FusedLinear, LinearPart, set_places, sharing

LARGEST_BLOCK = 256
"""Weights that a quantizer may scale together; their blocks must not reach into the next layer."""


def fuse_linears(denoiser: nn.Module, groups: Sequence[Sequence[str]]) -> int:
    """Replace the layers of each group by parts of one layer; their old memory is free afterwards.

    Args:
        groups: Full names of frozen linear layers, plain or quantised, those of each group with one input. Layers of a
            group have one parent module, whose forward calls them by their names in it.

    Returns:
        How many groups are fused: those whose layers are stored in one form.

    Raises:
        PluginError: If a group's layers do not fit together.
    """
    owners: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for group in groups:
        owner, names = _of_one_owner(group)
        if _alike([denoiser.get_submodule(name) for name in group], group):
            owners[owner].append(names)
    kinds: dict[type[nn.Module], type[nn.Module]] = {}
    for owner, found in owners.items():
        module = denoiser.get_submodule(owner)
        for names in found:
            _fuse(module, names)
        kind = type(module)
        module.__class__ = kinds.setdefault(kind, sharing(kind))
    if any(parameter.is_cuda for parameter in denoiser.parameters()):
        torch.cuda.empty_cache()  # the old weights' memory is in pieces that the new ones do not fit into
    return sum(map(len, owners.values()))


def joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Return a layer with the outputs of all, one after the other.

    Args:
        layers: Of one class, whose parameters and buffers have the outputs as their first dimension.
    """
    whole = copy.deepcopy(layers[0])
    whole.out_features = sum(layer.out_features for layer in layers)
    for name, _ in layers[0].named_parameters():
        rows = torch.cat([layer.get_parameter(name).detach() for layer in layers])
        setattr(whole, name, nn.Parameter(rows, requires_grad=False))
    for name, _ in layers[0].named_buffers():
        setattr(whole, name, torch.cat([layer.get_buffer(name) for layer in layers]))
    return whole


def _fuse(module: nn.Module, names: Sequence[str]) -> None:
    layers = [module.get_submodule(name) for name in names]
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    fused, place = FusedLinear(joined(linears), [layer.out_features for layer in linears]), "_".join(names)
    for index, name in enumerate(names):
        setattr(module, name, LinearPart(fused, index).train(module.training))
    module.add_module(place, fused.train(module.training))
    set_places(module, {name: (place, index) for index, name in enumerate(names)})


def _of_one_owner(group: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the name of the parent module, and those of the layers in it."""
    owners = {name.rpartition(".")[0] for name in group}
    if len(owners) != 1 or len(set(group)) < 2:
        raise PluginError(
            f"shared_input_linears() gives the group {', '.join(group)}\n"
            "hint: a group is two or more layers of one parent module, each once"
        )
    return owners.pop(), tuple(name.rpartition(".")[2] for name in group)


def _alike(layers: Sequence[nn.Module], group: Sequence[str]) -> bool:
    """Whether the layers are stored in one form; a quantizer may leave some as they are."""
    for name, layer in zip(group, layers, strict=True):
        if not isinstance(layer, nn.Linear) or isinstance(layer, LinearPart):
            raise PluginError(
                f"shared_input_linears() names {name}, which is a {type(layer).__name__}, no linear layer"
            )
    widths = {layer.in_features for layer in layers if isinstance(layer, nn.Linear)}
    if len(widths) != 1:
        raise PluginError(
            f"shared_input_linears() gives the group {', '.join(group)}, whose inputs have {sorted(widths)} features"
        )
    whole = all(type(layer) is nn.Linear or _has_whole_blocks(layer) for layer in layers)
    return whole and len({_form(layer) for layer in layers}) == 1


def _has_whole_blocks(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features * layer.out_features % LARGEST_BLOCK == 0


def _form(layer: nn.Module) -> tuple[object, ...]:
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    return type(layer), *((name, tensor.dtype, tensor.device, tensor.shape[1:]) for name, tensor in tensors)
