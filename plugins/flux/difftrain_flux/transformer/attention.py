"""The stock attention of FLUX.1, with a rotary embedding that torch.compile turns into faster kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_flux
from torch import Tensor

from difftrain import outputs_of

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_flux import FluxAttention

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each [S, head_dim], the two numbers of each pair of features next to each other."""


def use_fast_rotation(transformer: FluxTransformer2DModel) -> None:
    """Let every attention of the transformer rotate with :func:`rotated`; all else stays as it is."""
    transformer.set_attn_processor(FastRotation())


class FastRotation(transformer_flux.FluxAttnProcessor):  # type: ignore[misc, unused-ignore]
    """Attention over text and image tokens together, or over one sequence of both."""

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotation | None = None,
        queries: tuple[int, int] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the output of each sequence that is given, [B, S, dim]; the stock processor's names and order.

        Args:
            queries: Of one sequence, the first token that attends and how many do; None is all.
        """
        if queries is None:
            query, key, value = _heads(attn, (attn.to_q, attn.to_k, attn.to_v), hidden_states)
        else:
            (query,) = _heads(attn, (attn.to_q,), hidden_states.narrow(1, *queries))
            key, value = _heads(attn, (attn.to_k, attn.to_v), hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            of_text = _heads(attn, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), encoder_hidden_states)
            query = torch.cat([attn.norm_added_q(of_text[0]), query], dim=1)
            key = torch.cat([attn.norm_added_k(of_text[1]), key], dim=1)
            value = torch.cat([of_text[2], value], dim=1)
        if image_rotary_emb is not None:
            of_queries = image_rotary_emb
            if queries is not None:
                of_queries = image_rotary_emb[0].narrow(0, *queries), image_rotary_emb[1].narrow(0, *queries)
            query, key = rotated(query, of_queries), rotated(key, image_rotary_emb)
        output: Tensor = transformer_flux.dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        output = output.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return output
        text_part, image_part = torch.split(output, [encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        to_out, dropout = attn.to_out
        return dropout(to_out(image_part.contiguous())), attn.to_add_out(text_part.contiguous())


def _heads(attn: FluxAttention, layers: Sequence[Callable[[Tensor], Tensor]], tokens: Tensor) -> list[Tensor]:
    """Return each layer's output, [B, S, heads, head_dim]."""
    outputs = outputs_of(layers, tokens)
    return [output.view(*output.shape[:-1], -1, attn.head_dim) for output in outputs]


def rotated(heads: Tensor, rotation: Rotation) -> Tensor:
    """Return queries or keys turned by the angles of their positions, bit for bit as diffusers does it.

    ``(a, b)`` of each pair becomes ``(a cos - b sin, b cos + a sin)``. diffusers takes the pairs apart and puts them
    together again. In a compiled block each number is read with its partner instead: half the time (docs/log.md).

    Args:
        heads: [B, S, heads, head_dim].

    Source: Su et al., RoFormer, arXiv:2104.09864, equation 34.
    """
    if not torch.compiler.is_compiling():
        stock: Tensor = apply_rotary_emb(heads, rotation, sequence_dim=1)
        return stock
    cosines, sines = (part[None, :, None] for part in rotation)
    wide = heads.float()
    signs = torch.arange(-1, 2, 2, device=heads.device, dtype=torch.float32)
    partners = (wide.view(*wide.shape[:-1], -1, 2).flip(-1) * signs).flatten(-2)
    return (wide * cosines + partners * sines).to(heads.dtype)
