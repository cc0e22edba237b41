"""Quantises the linear layers of models that are already loaded: text encoders."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from difftrain.contracts import Quantizer
from difftrain.errors import PluginError


def place_quantised(
    models: Sequence[nn.Module],
    quantizers: Sequence[Quantizer | None],
    device: torch.device,
    *,
    quantize_on: torch.device,
    family: str,
) -> None:
    """Quantise each model on the CPU layer by layer, and move it to the device.

    Args:
        quantizers: One for each model; None leaves its weights as they are.
        quantize_on: Where a layer is whole while it is converted.
        family: Name of the family, for messages.

    Raises:
        PluginError: If the family's encoder does not give as many models as the family says.
    """
    if len(models) != len(quantizers):
        raise PluginError(
            f"model family {family!r}: text_encoders is {len(quantizers)}, but models() of its text encoder gives "
            f"{len(models)}"
        )
    for model, quantizer in zip(models, quantizers, strict=True):
        if quantizer is not None:
            _quantise(model, quantizer, quantize_on, device)
        model.to(device)


def _quantise(model: nn.Module, quantizer: Quantizer, quantize_on: torch.device, device: torch.device) -> None:
    # torch's own attention reads the weight of its output layer, instead of calling the layer
    used_otherwise = nn.modules.linear.NonDynamicallyQuantizableLinear
    places: dict[nn.Linear, list[str]] = {}
    for name, part in model.named_modules(remove_duplicate=False):
        if isinstance(part, nn.Linear) and not isinstance(part, used_otherwise):
            places.setdefault(part, []).append(name)
    _move_the_rest(model, places, device)
    waiting = deque(places.items())
    del places, part  # converting moves a layer to the GPU: it must not stay there beside its quantised form
    while waiting:
        linear, names = waiting.popleft()
        converted = quantizer.convert(names[0], linear, quantize_on).to(device).requires_grad_(False)
        for name in names:
            model.set_submodule(name, converted)


def _move_the_rest(model: nn.Module, linears: Iterable[nn.Linear], device: torch.device) -> None:
    """Move all but these layers: one small tensor would keep the whole file in memory that it was mapped from."""
    later = {id(tensor) for linear in linears for tensor in linear.parameters()}
    model._apply(lambda tensor: tensor if id(tensor) in later else tensor.to(device))  # type: ignore[no-untyped-call]
