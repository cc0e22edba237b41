"""FlashAttention-4, where the package flash-attn-4 is installed: a tenth faster than cuDNN's kernel on an H100.

An extra that no run needs: it is an alpha release, and compiles its kernels with NVIDIA's DSL, which has a licence of
its own. An op of our own, as torch cannot choose this kernel itself and torch.compile cannot look into it.

Source: Dao-AILab/flash-attention, flash_attn/cute/interface.py of flash-attn-4 4.0.0b36, whose functions for forward
and backward are not part of its promised interface.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.utils.flop_counter
from torch import Tensor

from difftrain.model.attention.kernel_names import FLASH4, missing_package

HEADS = (64, 96, 128)
"""Features per head that are tried here."""
CAPABILITIES = (9, 10, 11, 12)
"""Major compute capabilities with a backward kernel."""


def obstacle(device: torch.device) -> str | None:
    """Return why the kernel cannot be used on a device; None if nothing is known to be in the way."""
    if device.type != "cuda":
        return "it exists only for GPUs"
    major = torch.cuda.get_device_capability(device)[0]
    if major not in CAPABILITIES:
        return f"it is made for cards like the H100 and later, and this is a {torch.cuda.get_device_name(device)}"
    return missing_package(FLASH4)


@torch.library.custom_op("difftrain::flash4_attention", mutates_args=(), device_types="cuda")
def _attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output, [B, S, heads, head_dim] as all inputs, and the log-sum-exp, [B, heads, S]."""
    from flash_attn.cute.interface import _flash_attn_fwd

    with _without_the_compilers_warnings():
        output, log_sum, *_ = _flash_attn_fwd(query, key, value, return_lse=True)
    return output, log_sum


@_attention.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    return (
        query.new_empty(batch, length, heads, value.shape[-1]),
        query.new_empty(batch, heads, length, dtype=torch.float32),
    )


@torch.library.custom_op("difftrain::flash4_attention_backward", mutates_args=(), device_types="cuda")
def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    exact_order = torch.are_deterministic_algorithms_enabled()
    with _without_the_compilers_warnings():
        of_query, of_key, of_value, *_ = _flash_attn_bwd(
            query, key, value, output, gradient, log_sum, deterministic=exact_order
        )
    return of_query, of_key, of_value


@_attention_backward.register_fake
def _(_gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, gradient: Tensor, _of_log_sum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = _attention_backward(gradient.contiguous(), *ctx.saved_tensors)
    return of_query, of_key, of_value


torch.library.register_autograd("difftrain::flash4_attention", _gradients, setup_context=_save)


@torch.utils.flop_counter.register_flop_formula(torch.ops.difftrain.flash4_attention)
def _flops(query_shape: tuple[int, ...], key_shape: tuple[int, ...], *_others: object, **_named: object) -> int:
    batch, queries, heads, head_dim = query_shape
    return 4 * batch * heads * queries * key_shape[1] * head_dim


def flash4_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(head_dim)) v; each is [B, heads, S, head_dim], bfloat16 or float16, on a GPU."""
    rows = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))  # as models make them: no copy
    output: Tensor = _attention(*rows)[0]
    return output.transpose(1, 2)


def takes(tensor: Tensor) -> bool:
    """Whether the kernel takes such a query, key or value."""
    return (
        tensor.device.type == "cuda"
        and tensor.dtype in (torch.bfloat16, torch.float16)
        and tensor.dim() == 4
        and tensor.shape[-1] in HEADS
    )


def _without_the_compilers_warnings() -> warnings.catch_warnings[None]:
    """Its compiler warns of an argument of its own, once for each kernel."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
