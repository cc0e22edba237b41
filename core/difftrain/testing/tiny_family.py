"""A model family that needs no file: for tests of the core, and the shortest complete example of the contract.

Latents are 8x8 averages of the pixels, text is hashed to eight numbers, and the denoiser is five linear layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from difftrain.contracts import ImageEncoder, ModelFamily, ModelFlavour, TextEncoder
from difftrain.types import Batch, ModelLocation, ModelOutline, NoisyBatch, Sampler, Size, TextEmbeds, ValidationRequest

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

CELL = 8
"""Edge in pixels of the cell that one latent averages."""
SCALE, SHIFT, STD = 2.0, -0.1, 0.05
"""Latents are ``SCALE * average + SHIFT``, with a posterior of deviation ``STD``."""
TEXT_WIDTH = 8
TARGETS = ("enter", "see", "words", "middle", "leave")


@dataclass(frozen=True, kw_only=True)
class TinyInput:
    """The input of :class:`TinyFamily`'s denoiser."""

    noisy: Tensor
    """[B, 3, h, w]."""
    sigma: Tensor
    """[B]."""
    text: Tensor
    """[B, 8]."""
    references: tuple[Tensor, ...] = ()
    """Each [B, 3, h', w']."""


class TinyFlavour(ModelFlavour["TinyInput"]):
    """Takes no references."""

    family: ClassVar[str] = "tiny-test"
    name: ClassVar[str] = "base"
    hub_id: ClassVar[str] = "nobody/tiny-test"


class TinyEditFlavour(TinyFlavour):
    """Takes references, and gives their mean to the denoiser."""

    name: ClassVar[str] = "edit"
    max_references: ClassVar[int] = 4

    def extend_input(self, family: ModelFamily, model_input: TinyInput, batch: Batch) -> TinyInput:
        return replace(model_input, references=(*model_input.references, *batch.references))


class TinyTextEncoder(TextEncoder):
    """Turns captions into vectors by hash."""

    def encode(
        self, captions: Sequence[str], references: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[TextEmbeds]:
        """Return ``words`` [8] of each caption, -1 to 1."""
        import torch

        digests = [hashlib.sha256(caption.encode()).digest()[:TEXT_WIDTH] for caption in captions]
        return [{"words": torch.tensor([byte / 127.5 - 1 for byte in digest])} for digest in digests]


class TinyImageEncoder(ImageEncoder):
    """Averages pixels; there are no weights to move."""

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        averages = torch.nn.functional.avg_pool2d(pixels.float(), CELL).cpu()
        return SCALE * averages + SHIFT, torch.full_like(averages, STD)

    def move(self, device: torch.device) -> None:
        """Do nothing."""


class TinyFamily(ModelFamily["TinyInput"]):
    """The family; it accepts every location, and its weights are the same everywhere."""

    name: ClassVar[str] = "tiny-test"
    pixel_multiple: ClassVar[int] = CELL

    def locate(self, model: str | None, flavour: ModelFlavour) -> ModelLocation:
        return ModelLocation(name=model or flavour.hub_id, identity="tiny-test-1", path=None)

    def text_identity(self, location: ModelLocation, flavour: ModelFlavour) -> str:
        return location.identity

    def image_identity(self, location: ModelLocation) -> str:
        return location.identity

    def outline(self, model: str | None, flavour: ModelFlavour) -> ModelOutline:
        import torch

        def batch(target: Size, references: Sequence[Size], count: int) -> Batch:
            latents = [
                torch.empty(count, 3, size[1] // CELL, size[0] // CELL, device="meta") for size in (target, *references)
            ]
            words = torch.empty(count, TEXT_WIDTH, device="meta")
            return Batch(latents=latents[0], references=latents[1:], text={"words": words})

        denoiser = self.empty_denoiser(self.locate(model, flavour))
        return ModelOutline(denoiser=denoiser, example_batch=batch)

    def load_text_encoder(
        self, location: ModelLocation, flavour: ModelFlavour, device: torch.device, dtype: torch.dtype
    ) -> TextEncoder:
        return TinyTextEncoder()

    def load_image_encoder(
        self, location: ModelLocation, device: torch.device, dtype: torch.dtype, *, tiling: bool, slicing: bool
    ) -> ImageEncoder:
        return TinyImageEncoder()

    def empty_denoiser(self, location: ModelLocation) -> nn.Module:
        from accelerate import init_empty_weights

        from difftrain.testing.tiny_denoiser import TinyDenoiser

        with init_empty_weights():
            return TinyDenoiser(TEXT_WIDTH)

    def denoiser_weights(self, location: ModelLocation) -> Iterator[tuple[str, Tensor]]:
        from difftrain.testing.tiny_denoiser import make_denoiser

        yield from make_denoiser(TEXT_WIDTH).state_dict().items()

    def adapter_targets(self, denoiser: nn.Module) -> list[str]:
        return list(TARGETS)

    def blocks(self, denoiser: nn.Module) -> list[nn.Module]:
        return [denoiser.get_submodule("middle")]

    def collate_text(self, texts: Sequence[TextEmbeds]) -> TextEmbeds:
        import torch

        return {"words": torch.stack([text["words"] for text in texts])}

    def build_input(self, noisy: NoisyBatch, batch: Batch, denoiser: nn.Module) -> TinyInput:
        words = batch.text["words"]
        return TinyInput(noisy=noisy.noisy.to(words.dtype), sigma=noisy.timestep, text=words)

    def predict(self, denoiser: nn.Module, model_input: TinyInput) -> Tensor:
        prediction: Tensor = denoiser(model_input.noisy, model_input.sigma, model_input.text, model_input.references)
        return prediction

    def make_sampler(
        self,
        location: ModelLocation,
        flavour: ModelFlavour,
        denoiser: nn.Module,
        image_encoder: ImageEncoder,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Sampler:
        return TinySampler(
            family=self,
            flavour=flavour,
            denoiser=denoiser,
            image_encoder=image_encoder,
            device=device,
            dtype=dtype,
        )


class TinySampler:
    """Euler steps over the family's own forward, because there is no stock pipeline."""

    def __init__(
        self,
        *,
        family: TinyFamily,
        flavour: ModelFlavour,
        denoiser: nn.Module,
        image_encoder: ImageEncoder,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._family, self._flavour, self._denoiser = family, flavour, denoiser
        self._image_encoder, self._device, self._dtype = image_encoder, device, dtype

    def __call__(self, request: ValidationRequest) -> Image.Image:
        import torch

        generator = torch.Generator("cpu").manual_seed(request.seed)
        shape = (1, 3, request.height // CELL, request.width // CELL)
        latents = torch.randn(shape, generator=generator).to(self._device)
        sigmas = torch.linspace(1.0, 0.0, request.steps + 1, device=self._device)
        with torch.no_grad():
            for sigma, following in pairwise(sigmas):
                latents = latents + (following - sigma) * self._velocity(latents, sigma, request).float()
        return _to_image(latents)

    def _velocity(self, latents: Tensor, sigma: Tensor, request: ValidationRequest) -> Tensor:
        batch = Batch(
            latents=latents,
            references=[self._encode(image) for image in request.references],
            text=self._family.collate_text([request.text]),
        ).to(self._device, self._dtype)
        level = sigma[None]
        noisy = NoisyBatch(noisy=latents, sigma=level, timestep=level, target=latents.new_zeros(latents.shape))
        model_input = self._family.build_input(noisy, batch, self._denoiser)
        if batch.references:
            model_input = self._flavour.extend_input(self._family, model_input, batch)
        return self._family.predict(self._denoiser, model_input)

    def _encode(self, image: Image.Image) -> Tensor:
        import numpy as np
        import torch

        width, height = (max(CELL, edge // CELL * CELL) for edge in image.size)
        values = np.array(image.resize((width, height)).convert("RGB"), dtype=np.float32)
        pixels = torch.from_numpy(values).permute(2, 0, 1)[None] / 127.5 - 1
        return self._image_encoder.encode(pixels)[0]


def _to_image(latents: Tensor) -> Image.Image:
    """Paint every latent as a square of its colour."""
    from PIL import Image

    averages = ((latents[0] - SHIFT) / SCALE).clamp(-1, 1)
    values = ((averages + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().contiguous()
    small = Image.fromarray(values.numpy())
    return small.resize((small.width * CELL, small.height * CELL), Image.Resampling.NEAREST)
