"""Contracts of a model's text and image encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftrain.types import TextEmbeds

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn


class TextEncoder(ABC):
    """A family's text encoders, loaded."""

    max_tokens: int | None = None
    """Tokens of a caption that the encoder reads; None if there is no fixed number."""

    def models(self) -> Sequence[nn.Module]:
        """The models inside, :attr:`ModelFamily.text_encoders` of them, the first for ``text_encoder_1_precision``.

        If a run quantises one, the core loads the encoder on the CPU, replaces linear layers and moves the models to
        the device, so :meth:`encode` must take the device from them.
        """
        return ()

    def cut_captions(self, captions: Sequence[str]) -> list[str]:
        """The captions that the encoder does not read to the end, so that the user can be warned; by default none."""
        return []

    @abstractmethod
    def encode(
        self, captions: Sequence[str], references: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[TextEmbeds]:
        """Embeddings of each caption, without a batch dimension, on the CPU.

        Args:
            captions: Any texts; may be empty.
            references: The reference images of each caption, in the size that :meth:`ModelFamily.text_view` gives. Only
                for families with :attr:`ModelFamily.text_sees_references`; None for all others and for captions without
                references. All captions of one call have the same number of references, at least one.
        """


class ImageEncoder(ABC):
    """A family's VAE, loaded."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the *normalised* latents.

        The family's normalisation is affine, so ``mean + std * N(0, 1)`` is a normalised sample.

        Args:
            pixels: [B, 3, H, W], -1 to 1, float32.

        Returns:
            Two tensors [B, C, h, w], finite, on the CPU.
        """

    @abstractmethod
    def move(self, device: torch.device) -> None:
        """Move the weights to another device, to free memory while they are not needed."""
