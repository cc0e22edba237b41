"""A validation image to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from difftrain.types.batches import TextEmbeds

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """One image to draw with the model as it is now."""

    text: TextEmbeds
    """Embeddings of one prompt, not batched."""
    negative_text: TextEmbeds | None
    references: tuple[Image.Image, ...]
    width: int
    height: int
    steps: int
    guidance: float
    guidance_real: float
    """True classifier-free guidance; 1.0 is off."""
    seed: int


class Sampler(Protocol):
    """Draws validation images."""

    def __call__(self, request: ValidationRequest) -> Image.Image: ...
