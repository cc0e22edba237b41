"""The last block for the target's tokens alone: of all others only their keys and values are needed there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.transformers import transformer_flux
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

    from difftrain_flux.transformer.attention import Rotation


class LastBlock(transformer_flux.FluxSingleTransformerBlock):  # type: ignore[misc, unused-ignore]
    """The stock single block, which can leave out the tokens that nothing reads afterwards."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotation | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        shown: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return text and image tokens, as the stock block does.

        Args:
            hidden_states: [B, N, D], the target's tokens first.
            encoder_hidden_states: [B, T, D].
            shown: If given, only so many image tokens are computed, the first ones: the result has [B, shown, D], and
                the text as it was.
        """
        if shown is None:
            both: tuple[Tensor, Tensor] = super().forward(
                hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
            )
            return both
        start = encoder_hidden_states.shape[1]
        normed, gate = self.norm(torch.cat([encoder_hidden_states, hidden_states], dim=1), emb=temb)
        attended = self.attn(
            hidden_states=normed,
            image_rotary_emb=image_rotary_emb,
            queries=(start, shown),
            **(joint_attention_kwargs or {}),
        )
        widened = self.act_mlp(self.proj_mlp(normed[:, start : start + shown]))
        change = gate.unsqueeze(1) * self.proj_out(torch.cat([attended, widened], dim=2))
        return encoder_hidden_states, hidden_states[:, :shown] + change


def use_last_block(transformer: FluxTransformer2DModel) -> None:
    """Make the last single block a :class:`LastBlock`; its weights and their names stay."""
    transformer.single_transformer_blocks[-1].__class__ = LastBlock


def has_last_block(transformer: FluxTransformer2DModel) -> bool:
    """Return whether the last block can leave tokens out."""
    return isinstance(transformer.single_transformer_blocks[-1], LastBlock)


@contextmanager
def showing(transformer: FluxTransformer2DModel, count: int) -> Iterator[None]:
    """Inside this context the last block computes only so many image tokens, the first ones."""

    def show(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, {**named, "shown": count}  # an argument: what recomputes the block later has it too

    handle = transformer.single_transformer_blocks[-1].register_forward_pre_hook(show, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
