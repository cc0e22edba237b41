"""What a run asks for that does not go together with its precision, its adapter or its family, and the nearest that
does. No torch: it is said before anything is read.

`tests/unit/test_combinations.py` tries every combination, and `docs/precision.md` shows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from difftrain import contracts
from difftrain.config.schema import RunConfig

_SIMILAR = 1.25
"""Formats whose weights differ by less than this factor need about as much memory."""
Quantizers = Mapping[str, type[contracts.Quantizer]]


def clashes_of_precision(config: RunConfig, quantizer: contracts.Quantizer, known: Quantizers) -> list[str]:
    """Return what the config asks for that does not go together with the precision of the denoiser, with the remedy.

    Args:
        known: All quantizers, by name, to recommend another one.
    """
    found = []
    weights = f"weights of base_model_precision {quantizer.name!r}"
    if config.dynamo_backend not in ("auto", "no") and not quantizer.can_compile:
        found.append(
            f"dynamo_backend {config.dynamo_backend!r}: torch.compile does not take {weights}; "
            f'{_those(quantizer, known, can_compile)} it takes, or set dynamo_backend to "no"'
        )
    if config.blocks_to_swap not in ("auto", 0) and not can_swap(quantizer):
        found.append(
            f"blocks_to_swap {config.blocks_to_swap}: {weights} cannot wait in the host's memory; "
            f'{_those(quantizer, known, can_swap)} can, or set blocks_to_swap to "auto"'
        )
    if config.fuse_qkv_projections and not quantizer.can_fuse:
        found.append(
            f"fuse_qkv_projections: {weights} cannot be fused; {_those(quantizer, known, can_fuse)} can, or set "
            "fuse_qkv_projections to false"
        )
    return found


def clashes_of_adapter(
    config: RunConfig, adapter: contracts.Adapter, known: Mapping[str, type[contracts.Adapter]]
) -> list[str]:
    """Return the same for the adapter."""
    if adapter.trains_base:
        return _clashes_of_whole_model(config, adapter)
    if adapter.takes_products or not config.fuse_qkv_projections:
        return []
    able = " or ".join(sorted(name for name, found in known.items() if found.takes_products))
    return [
        f"fuse_qkv_projections: adapters of lora_type {adapter.name!r} do not take products that are computed "
        f"together; use lora_type {able}, or set fuse_qkv_projections to false"
    ]


def _clashes_of_whole_model(config: RunConfig, adapter: contracts.Adapter) -> list[str]:
    """Return what only frozen weights can do."""
    found = []
    if config.fuse_qkv_projections:
        found.append(
            f"fuse_qkv_projections: it puts frozen layers together, and model_type {adapter.name!r} trains them; "
            'set fuse_qkv_projections to false, or model_type to "lora"'
        )
    if config.blocks_to_swap not in ("auto", 0):
        found.append(
            f"blocks_to_swap {config.blocks_to_swap}: only frozen weights wait in the host's memory, and model_type "
            f'{adapter.name!r} trains all; set blocks_to_swap to "auto", which swaps none, or model_type to "lora"'
        )
    return found


def clash_of_weights(
    adapter: contracts.Adapter, quantizer: contracts.Quantizer | type[contracts.Quantizer]
) -> str | None:
    """Return why the adapter does not go together with quantised weights; None if it does."""
    if adapter.trains_base:
        return (
            f"base_model_precision {quantizer.name!r}: model_type {adapter.name!r} trains these weights, and codes "
            'cannot be trained; set base_model_precision to "no_change", or model_type to "lora"'
        )
    if adapter.reads_weights is None or quantizer.can_dequantize:
        return None
    return (
        f"{adapter.reads_weights}: the adapter reads the frozen weights, and base_model_precision {quantizer.name!r} "
        f"does not give them back; set base_model_precision to no_change, or {adapter.reads_weights} to false"
    )


def clashes_of_family(config: RunConfig, family: contracts.ModelFamily) -> list[str]:
    """Return the same for the model's family."""
    unnamed = type(family).shared_input_linears is contracts.ModelFamily.shared_input_linears
    if config.fuse_qkv_projections and unnamed:
        return [
            f"fuse_qkv_projections: model_family {family.name!r} names no layers that share their input; "
            "set fuse_qkv_projections to false"
        ]
    return []


def can_swap(quantizer: contracts.Quantizer | type[contracts.Quantizer] | None) -> bool:
    """Whether the weights are plain tensors, whose memory can be swapped: those that torch.compile takes are."""
    return quantizer is None or quantizer.can_compile


def can_compile(quantizer: type[contracts.Quantizer]) -> bool:
    """Whether torch.compile takes the weights."""
    return quantizer.can_compile


def can_fuse(quantizer: type[contracts.Quantizer]) -> bool:
    """Whether layers that share their input can become one."""
    return quantizer.can_fuse


def nearest(
    quantizer: type[contracts.Quantizer], known: Quantizers, able: Callable[[type[contracts.Quantizer]], bool]
) -> list[str]:
    """Return the names of the precisions that can what this one cannot and whose weights need most nearly as much."""
    size = quantizer.weight_bytes or 1.0
    distances = {
        name: abs(math.log(found.weight_bytes / size))
        for name, found in known.items()
        if able(found) and found.weight_bytes
    }
    limit = max(min(distances.values(), default=0.0), math.log(_SIMILAR))
    return [name for name, distance in distances.items() if distance <= limit] or ["no_change"]


def _those(quantizer: contracts.Quantizer, known: Quantizers, able: Callable[[type[contracts.Quantizer]], bool]) -> str:
    return f"those of {', '.join(nearest(type(quantizer), known, able))}"
