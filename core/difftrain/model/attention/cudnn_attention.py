"""cuDNN's attention in the form that is right in training: an op of its own, with dense inputs and gradients.

Inside stock models torch's own call of cuDNN crashes in the backward pass ("illegal memory access") or gives NaN on
Hopper, with torch 2.11, where the gradient that reaches it is not dense. And torch.compile has reused a cached graph
with another kernel for it; an op with a name of its own cannot be taken for another.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.flop_counter
from torch import Tensor

LARGEST_HEAD = 128
"""Features per head that the kernel takes on every card."""


@torch.library.custom_op("difftrain::cudnn_attention", mutates_args=(), device_types="cuda")
def _attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the output, the log-sum-exp, and the state of a dropout that is not used."""
    output, log_sum, _, _, _, _, seed, offset, _ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query.contiguous(), key.contiguous(), value.contiguous(), None, True, 0.0, False, False
    )
    return output.contiguous(), log_sum, seed, offset


@_attention.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    return (
        query.new_empty(batch, heads, length, value.shape[-1]),
        query.new_empty(batch, heads, length, 1, dtype=torch.float32),
        query.new_empty((), dtype=torch.int64),
        query.new_empty((), dtype=torch.int64),
    )


@torch.library.custom_op("difftrain::cudnn_attention_backward", mutates_args=(), device_types="cuda")
def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor, seed: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        gradient.contiguous(), query.contiguous(), key.contiguous(), value.contiguous(), output, log_sum, seed, offset,
        None, None, None, query.shape[2], key.shape[2], 0.0, False,
    )  # fmt: skip
    of_query, of_key, of_value = (part.contiguous() for part in gradients)
    return of_query, of_key, of_value


@_attention_backward.register_fake
def _(_gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, gradient: Tensor, *_others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = _attention_backward(gradient.contiguous(), *ctx.saved_tensors)
    return of_query, of_key, of_value


torch.library.register_autograd("difftrain::cudnn_attention", _gradients, setup_context=_save)


@torch.utils.flop_counter.register_flop_formula(torch.ops.difftrain.cudnn_attention)
def _flops(query_shape: tuple[int, ...], key_shape: tuple[int, ...], *_others: object, **_named: object) -> int:
    batch, heads, queries, head_dim = query_shape
    return 4 * batch * heads * queries * key_shape[2] * head_dim


def cudnn_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(head_dim)) v; each is [B, heads, S, head_dim], bfloat16 or float16, on a GPU."""
    output: Tensor = _attention(query.contiguous(), key.contiguous(), value.contiguous())[0]
    return output


def takes(tensor: Tensor) -> bool:
    """Whether the kernel takes such a query, key or value."""
    return (
        tensor.device.type == "cuda"
        and tensor.dtype in (torch.bfloat16, torch.float16)
        and tensor.dim() == 4
        and tensor.shape[-1] <= LARGEST_HEAD
        and tensor.shape[-1] % 8 == 0
    )
