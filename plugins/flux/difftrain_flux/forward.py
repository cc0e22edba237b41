"""The training forward: one sequence of target and reference tokens through the stock transformer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from difftrain import Batch, NoisyBatch
from difftrain_flux.packing import PATCH, pack, position_ids, unpack
from difftrain_flux.transformer.last_block import has_last_block, showing

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel


@dataclass(frozen=True, kw_only=True)
class FluxInput:
    """The transformer's input: the target's tokens first, then those that a flavour appends."""

    tokens: Tensor
    """[B, N, 64]."""
    ids: Tensor
    """[N, 3], float32."""
    sigma: Tensor
    """[B]; the transformer itself multiplies by 1000."""
    guidance: Tensor | None
    """[B], or None if the model has no guidance embedding."""
    prompt_embeds: Tensor
    """[B, T, D]."""
    pooled: Tensor
    """[B, P]."""
    latent_size: tuple[int, int]
    """(height, width) of the target's latents."""

    @property
    def target_tokens(self) -> int:
        height, width = self.latent_size
        return height * width // 4

    def append(self, latents: Tensor, *, index: int, top: int, left: int) -> FluxInput:
        """Return this input with the tokens of one more image at the end, for example a reference.

        Args:
            latents: [B, 16, h, w], h and w even.
            index: First component of the position ids; 0 is the target.
            top: Latent cells above the image in position space, even.
            left: Latent cells left of it, even.
        """
        rows, columns = latents.shape[-2] // PATCH, latents.shape[-1] // PATCH
        ids = position_ids(rows, columns, index=index, top=top // PATCH, left=left // PATCH, device=self.ids.device)
        return replace(
            self,
            tokens=torch.cat([self.tokens, pack(latents).to(self.tokens)], dim=1),
            ids=torch.cat([self.ids, ids], dim=0),
        )


def unwrap(denoiser: nn.Module) -> FluxTransformer2DModel:
    """Return the transformer without the wrappers of DDP (``module``) and torch.compile (``_orig_mod``)."""
    while True:
        inner = getattr(denoiser, "_orig_mod", None) or getattr(denoiser, "module", None)
        if not isinstance(inner, nn.Module):
            return denoiser
        denoiser = inner


def build_input(noisy: NoisyBatch, batch: Batch, guidance: Tensor | None) -> FluxInput:
    """Return the input of target and text alone, in the dtype of the batch's text."""
    prompt_embeds = batch.text["prompt_embeds"]
    height, width = noisy.noisy.shape[-2:]
    return FluxInput(
        tokens=pack(noisy.noisy).to(prompt_embeds.dtype),
        ids=position_ids(height // PATCH, width // PATCH, device=noisy.noisy.device),
        sigma=noisy.timestep,
        guidance=guidance,
        prompt_embeds=prompt_embeds,
        pooled=batch.text["pooled_prompt_embeds"],
        latent_size=(height, width),
    )


def predict(denoiser: nn.Module, model_input: FluxInput) -> Tensor:
    """Return the velocity of the target, [B, C, h, w].

    References are no longer needed once the last block has attended to them, so the sequence is cut to the
    target before the output layers: same values, less work.
    """
    text = model_input.prompt_embeds
    with _target_only(unwrap(denoiser), model_input):
        (prediction,) = denoiser(
            hidden_states=model_input.tokens,
            timestep=model_input.sigma,
            guidance=model_input.guidance,
            pooled_projections=model_input.pooled,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, dtype=torch.float32, device=text.device),
            img_ids=model_input.ids,
            return_dict=False,
        )
    return unpack(prediction[:, : model_input.target_tokens], *model_input.latent_size)


@contextmanager
def _target_only(transformer: FluxTransformer2DModel, model_input: FluxInput) -> Iterator[None]:
    """Inside this context the output layers see only the target's tokens, and the last block too if it can."""
    count = model_input.target_tokens
    if model_input.tokens.shape[1] == count:
        yield
        return

    def cut(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        return (hidden[:, :count], *others)

    handle = transformer.norm_out.register_forward_pre_hook(cut)
    try:
        with showing(transformer, count) if has_last_block(transformer) else nullcontext():
            yield
    finally:
        handle.remove()
