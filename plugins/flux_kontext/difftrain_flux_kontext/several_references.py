"""The stock pipeline with any number of references, placed as in training. With one it does what it always does."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image
from torch import Tensor

from difftrain_flux_kontext.reference_ids import Rule, place_references

CELLS = 2
"""Latent cells along the edge of a token."""


class SeveralReferencesPipeline(FluxKontextPipeline):  # type: ignore[misc]
    """Takes a list of references as ``image``; the first goes through the stock code, the others follow it."""

    rule: ClassVar[Rule] = "offset"
    """How references are told apart; must be the one of training."""

    def __call__(self, *args: Any, image: Any = None, _auto_resize: bool = True, **named: Any) -> Any:
        first, *others = image if isinstance(image, list) else [image]
        self._others = [self._pixels(other, resize=_auto_resize) for other in others]
        return super().__call__(*args, image=first, _auto_resize=_auto_resize, **named)

    def _pixels(self, image: Image.Image, *, resize: bool) -> Tensor:
        """Return [1, 3, H, W] at the size that the stock code gives a first reference."""
        height, width = self.image_processor.get_default_height_width(image)
        if resize:
            aspect = width / height
            _, width, height = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        multiple = self.vae_scale_factor * CELLS
        width, height = width // multiple * multiple, height // multiple * multiple
        pixels: Tensor = self.image_processor.preprocess(
            self.image_processor.resize(image, height, width), height, width
        )
        return pixels

    def prepare_latents(
        self,
        image: Tensor | None,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Any = None,
        latents: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Add tokens and position ids of the further references to those of the first."""
        prepared = super().prepare_latents(
            image, batch_size, num_channels_latents, height, width, dtype, device, generator, latents
        )
        if image is None or not self._others:
            return prepared  # type: ignore[no-any-return]
        target, tokens, target_ids, ids = prepared
        # a mean, drawn without the generator: the noise of the target stays the same
        encoded = [
            self._encode_vae_image(image=other.to(device=device, dtype=dtype), generator=generator)
            for other in self._others
        ]
        first = (image.shape[-2] // self.vae_scale_factor, image.shape[-1] // self.vae_scale_factor)
        sizes = [first, *((one.shape[-2], one.shape[-1]) for one in encoded)]
        all_tokens, all_ids = [tokens], [ids]
        for latent, size, place in zip(encoded, sizes[1:], place_references(sizes, self.rule)[1:], strict=True):
            latent = latent.expand(batch_size, -1, -1, -1)
            all_tokens.append(self._pack_latents(latent, batch_size, num_channels_latents, *size))
            rows, columns = size[0] // CELLS, size[1] // CELLS
            own = self._prepare_latent_image_ids(batch_size, rows, columns, device, dtype)
            offset = (place.index, place.top // CELLS, place.left // CELLS)
            all_ids.append(own + torch.tensor(offset, device=device, dtype=dtype))
        return target, torch.cat(all_tokens, dim=1), target_ids, torch.cat(all_ids, dim=0)


def pipeline_with(rule: Rule) -> type[SeveralReferencesPipeline]:
    """Return the pipeline for models trained with this rule.

    It has the stock name, because that is what saved pipelines and messages name.
    """
    return type(FluxKontextPipeline.__name__, (SeveralReferencesPipeline,), {"rule": rule})
