"""FLUX.1 as the core sees it: options, and which module does each part. Light: torch is imported when used.

The methods are in the order of a run: `locate.py`, `text.py`, `vae.py`, `transformer/`, `targets.py`, `forward.py`,
`sampling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from difftrain import (
    AttentionShape,
    Batch,
    ImageEncoder,
    KnownKeys,
    ModelFamily,
    ModelFlavour,
    ModelLocation,
    ModelOutline,
    NoisyBatch,
    OriginalLayers,
    Sampler,
    Size,
    TextEmbeds,
    TextEncoder,
)
from difftrain_flux.known_keys import KNOWN_KEYS
from difftrain_flux.model_files.denoiser import denoiser_weights, identify_folder
from difftrain_flux.model_files.entry_bytes import latents_bytes, text_bytes
from difftrain_flux.model_files.folder import IMAGE_COMPONENTS, TEXT_COMPONENTS
from difftrain_flux.model_files.layouts import ORIGINAL_LAYERS
from difftrain_flux.model_files.locate import locate, locate_with_denoiser, part_identity
from difftrain_flux.model_files.single_file import recognise
from difftrain_flux.targets import Target, attention_inputs, select_targets
from difftrain_flux.text_length import long_captions, text_length

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers import FluxTransformer2DModel
    from torch import Tensor, nn

    from difftrain_flux.forward import FluxInput

TOKEN_AREA = 4
"""Latent cells per token."""


def auto_shift(tokens: int) -> float:
    """Return the shift that the stock pipelines draw with: exp(mu), mu on the line (256, 0.5), (4096, 1.15).

    Args:
        tokens: Length of the target's token sequence, without references.

    Source:
        black-forest-labs/flux 802fb47, src/flux/sampling.py `get_schedule`.
    """
    slope = (1.15 - 0.5) / (4096 - 256)
    return math.exp(0.5 + slope * (tokens - 256))


class FluxFamily(ModelFamily["FluxInput"]):
    """FLUX.1: a transformer over image and text tokens, CLIP and T5 text encoders, a 16-channel VAE."""

    name: ClassVar[str] = "flux"
    pixel_multiple: ClassVar[int] = 16
    default_flavour: ClassVar[str | None] = "dev"
    replayable: ClassVar[bool] = True
    text_encoders: ClassVar[int] = 2
    adapter_options: ClassVar[frozenset[str]] = frozenset({"flux_lora_target"})
    known_keys: ClassVar[KnownKeys] = KNOWN_KEYS
    lycoris_classes: ClassVar[tuple[str, ...]] = ("FluxAttention", "FeedForward")
    old_class_names: ClassVar[Mapping[str, str]] = {"Attention": "FluxAttention"}
    original_layers: ClassVar[OriginalLayers | None] = ORIGINAL_LAYERS

    flux_lora_target: Target = "all"
    """Modules that an adapter wraps: all (attention of all blocks), mmdit (attention of the double blocks),
    context (its text side), context+ffs (and the text side's feed-forward), all+ffs (and every feed-forward),
    tiny (single blocks 7 and 20), nano (single block 7)."""
    flux_guidance_mode: Literal["constant", "random-range"] = "constant"
    """How guidance is set in training; no effect on models without a guidance embedding."""
    flux_guidance_value: float = Field(1.0, ge=0)
    """Guidance of every sample with flux_guidance_mode constant."""
    flux_guidance_min: float = Field(1.0, ge=0)
    """Lowest guidance with flux_guidance_mode random-range."""
    flux_guidance_max: float = Field(4.0, ge=0)
    """Highest guidance with flux_guidance_mode random-range."""
    flow_schedule_shift: float | None = Field(3.0, ge=0)
    """Moves noise levels towards noise: s*sigma / (1 + (s-1)*sigma). The default 3 is usual in other Flux
    trainers; null, 0 and 1 are no shift. Unused with flow_schedule_auto_shift."""
    flow_schedule_auto_shift: bool = False
    """Derive the shift from the target's size instead, as the pipelines do when drawing: 3.16 at 1024x1024,
    1.88 at 512x512. Off by default, as in other Flux trainers."""

    flux_cut_last_block: bool = False
    """Compute the last block for the target's tokens alone where there are references: same values, 0.8 % less time at
    1024 px. One more kind of block has to be compiled, in about 20 s, so it pays in runs of more than 4000 steps."""
    flux_attention_masked_training: Literal[False] = False
    """Leave padding tokens of the text out of the attention. Only false works in this version: the stock pipelines
    attend to them."""

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if self.flux_guidance_min > self.flux_guidance_max:
            raise ValueError(
                f"flux_guidance_min {self.flux_guidance_min} is above flux_guidance_max {self.flux_guidance_max}"
            )
        return self

    # before any weight
    def locate(self, model: str | None, flavour: ModelFlavour) -> ModelLocation:
        return locate(model, flavour)

    def locate_with_denoiser(self, model: str | None, denoiser: str, flavour: ModelFlavour) -> ModelLocation:
        return locate_with_denoiser(model, denoiser, flavour)

    def identify_file(self, path: Path) -> ModelLocation:
        known = recognise(path).identity
        return ModelLocation(name=path.name, identity="", path=path, facts=known.facts, origins=known.origins)

    def identify_folder(self, path: Path) -> ModelLocation:
        known = identify_folder(path)
        return ModelLocation(name=path.name, identity="", path=path, facts=known.facts, origins=known.origins)

    def text_identity(self, location: ModelLocation, flavour: ModelFlavour) -> str:
        return f"flux-text-1|{part_identity(location, TEXT_COMPONENTS)}|{text_length(location, flavour)}"

    def image_identity(self, location: ModelLocation) -> str:
        return f"flux-vae-1|{part_identity(location, IMAGE_COMPONENTS)}"

    def latents_bytes(self, location: ModelLocation, size: Size, value_bytes: int) -> int:
        return latents_bytes(location, size, value_bytes)

    def text_bytes(
        self, location: ModelLocation, flavour: ModelFlavour, value_bytes: int, views: Sequence[Size] = ()
    ) -> int:
        return text_bytes(location, flavour, value_bytes)

    def long_captions(
        self, location: ModelLocation, flavour: ModelFlavour, captions: Sequence[str]
    ) -> Sequence[str] | None:
        return long_captions(location, flavour, captions)

    def outline(self, model: str | None, flavour: ModelFlavour) -> ModelOutline:
        from difftrain_flux.outline import outline

        return outline(model, flavour)

    def outline_with_denoiser(self, model: str | None, denoiser: str, flavour: ModelFlavour) -> ModelOutline:
        from difftrain_flux.outline import outline

        return outline(model, flavour, denoiser)

    # loading
    def load_text_encoder(
        self, location: ModelLocation, flavour: ModelFlavour, device: torch.device, dtype: torch.dtype
    ) -> TextEncoder:
        from difftrain_flux.text import load_text_encoder

        return load_text_encoder(location, flavour, device, dtype)

    def load_image_encoder(
        self, location: ModelLocation, device: torch.device, dtype: torch.dtype, *, tiling: bool, slicing: bool
    ) -> ImageEncoder:
        from difftrain_flux.vae import load_image_encoder

        return load_image_encoder(location, device, dtype, tiling=tiling, slicing=slicing)

    def empty_denoiser(self, location: ModelLocation) -> FluxTransformer2DModel:
        from difftrain_flux.transformer.empty_transformer import empty_transformer

        return empty_transformer(location, cuts_last_block=self.flux_cut_last_block)

    def denoiser_weights(self, location: ModelLocation) -> Iterator[tuple[str, Tensor]]:
        return denoiser_weights(location)

    def adapter_targets(self, denoiser: nn.Module) -> list[str]:
        from difftrain_flux.forward import unwrap

        return select_targets((name for name, _ in unwrap(denoiser).named_modules()), self.flux_lora_target)

    def shared_input_linears(self, denoiser: nn.Module) -> list[tuple[str, ...]]:
        from difftrain_flux.forward import unwrap

        return attention_inputs(name for name, _ in unwrap(denoiser).named_modules())

    def fixed(self) -> dict[str, object]:
        return {"flux_lora_target": self.flux_lora_target}

    def blocks(self, denoiser: nn.Module) -> list[nn.Module]:
        from difftrain_flux.forward import unwrap

        transformer = unwrap(denoiser)
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]

    def keep_unquantized(self) -> tuple[str, ...]:
        """Return the input and output layers: a thousandth of the weights, but every token goes through them."""
        return ("x_embedder", "context_embedder", "time_text_embed.*", "norm_out.*", "proj_out")

    # one step
    def sigma_shift(self, latents: Tensor) -> float:
        if self.flow_schedule_auto_shift:
            return auto_shift(latents.shape[-2] * latents.shape[-1] // TOKEN_AREA)
        return self.flow_schedule_shift or 1.0

    def tokens(self, batch: Batch) -> Mapping[str, int]:
        return {
            "target": batch.latents[0, 0].numel() // TOKEN_AREA,
            "references": sum(reference[0, 0].numel() // TOKEN_AREA for reference in batch.references),
            "text": batch.text["prompt_embeds"].shape[1],
        }

    def attention_shapes(self, batch: Batch, denoiser: nn.Module) -> Sequence[AttentionShape]:
        from difftrain_flux.forward import unwrap
        from difftrain_flux.transformer.last_block import has_last_block

        # one sequence of text, target and references, in both double and single blocks
        tokens, transformer = self.tokens(batch), unwrap(denoiser)
        length = sum(tokens.values())
        lengths, config = [length], transformer.config
        if batch.references and has_last_block(transformer):
            lengths.append(tokens["target"])
        return [
            AttentionShape(
                batch=len(batch.latents),
                heads=config.num_attention_heads,
                queries=queries,
                keys=length,
                head_dim=config.attention_head_dim,
            )
            for queries in lengths
        ]

    def collate_text(self, texts: Sequence[TextEmbeds]) -> TextEmbeds:
        import torch

        return {name: torch.stack([text[name] for text in texts]) for name in texts[0]}

    def build_input(self, noisy: NoisyBatch, batch: Batch, denoiser: nn.Module) -> FluxInput:
        from difftrain_flux.forward import build_input, unwrap

        has_guidance = unwrap(denoiser).config.guidance_embeds
        return build_input(noisy, batch, self._guidance(noisy.sigma) if has_guidance else None)

    def predict(self, denoiser: nn.Module, model_input: FluxInput) -> Tensor:
        from difftrain_flux.forward import predict

        return predict(denoiser, model_input)

    def _guidance(self, sigma: Tensor) -> Tensor:
        """Return [B]; random-range draws from torch's global generator on the CPU."""
        import torch

        if self.flux_guidance_mode == "constant":
            return torch.full_like(sigma, self.flux_guidance_value)
        span = self.flux_guidance_max - self.flux_guidance_min
        guidance = self.flux_guidance_min + span * torch.rand(sigma.shape)
        return guidance.pin_memory().to(sigma, non_blocking=True) if sigma.is_cuda else guidance.to(sigma)

    # validation
    def make_sampler(
        self,
        location: ModelLocation,
        flavour: ModelFlavour,
        denoiser: nn.Module,
        image_encoder: ImageEncoder,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Sampler:
        from difftrain_flux.sampling import make_sampler

        return make_sampler(location, flavour, denoiser, image_encoder, device, dtype)
