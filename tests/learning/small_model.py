"""The built-in `tiny` with the measurements of the learning tests: photographs, losses, drawings.

Adapters are loaded as a user loads them, through the stock pipeline's `load_lora_weights`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from torch import Tensor

from difftrain import Batch, FlowMatching
from difftrain.plugins.discovery import load_plugins
from difftrain.types import ValidationRequest

SIZE = 96
SIGMAS = (0.25, 0.5, 0.75, 0.9)
TRAINED_ON = ("astronaut", "galaxies", "launchpad", "retina")
HELD_OUT = ("cat", "coffee", "rocket")


def photograph(name: str) -> Image.Image:
    """Return one of the tests' photographs, shorter edge 192 pixels."""
    with Image.open(Path(__file__).parents[1] / "photos" / f"{name}.jpg") as image:
        return image.convert("RGB")


def windows(names: Sequence[str], each: int, *, size: int = SIZE, seed: int = 0) -> list[Image.Image]:
    """Return square windows of photographs, ``each`` from every one, reduced to ``size``."""
    rng, cut = random.Random(seed), []
    for name in names:
        image = photograph(name)
        for _ in range(each):
            edge = rng.randint(140, min(image.size))
            left, top = rng.randint(0, image.width - edge), rng.randint(0, image.height - edge)
            window = image.crop((left, top, left + edge, top + edge))
            cut.append(window.resize((size, size), Image.Resampling.LANCZOS))
    return cut


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Return the similarity of two images in dB."""
    difference = np.asarray(image, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return 10 * math.log10(255**2 / (difference**2).mean())


class SmallModel:
    """Load the checkpoint's parts in float32 on the CPU."""

    def __init__(self) -> None:
        registry, device = load_plugins().registry, torch.device("cpu")
        self.family = registry.find("family", "flux")()
        self.flavour = registry.find("flavour", "kontext", family="flux")()
        location = self.family.locate("tiny", self.flavour)
        self.pipeline = FluxKontextPipeline.from_pretrained(location.path, torch_dtype=torch.float32)
        self.denoiser = self.pipeline.transformer
        self.image_encoder = self.family.load_image_encoder(
            location, device, torch.float32, tiling=False, slicing=False
        )
        encoder = self.family.load_text_encoder(location, self.flavour, device, torch.float32)
        self.text = cache(lambda caption: encoder.encode([caption])[0])
        self._sampler = self.family.make_sampler(
            location, self.flavour, self.denoiser, self.image_encoder, device, torch.float32
        )

    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, 16, h, w]."""
        pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 127.5 - 1
        return self.image_encoder.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())[0]

    @torch.no_grad()
    def losses(self, targets: Tensor, references: Tensor | None, caption: str) -> dict[float, float]:
        """Return the velocity loss at each noise level, with the same noise in every call."""
        text = self.family.collate_text([self.text(caption)] * len(targets))
        batch = Batch(latents=targets, references=[] if references is None else [references], text=text)
        measured = {}
        for sigma in SIGMAS:
            noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
            noisy = FlowMatching().add_noise(targets, torch.full((len(targets),), sigma), noise)
            model_input = self.family.build_input(noisy, batch, self.denoiser)
            if batch.references:
                model_input = self.flavour.extend_input(self.family, model_input, batch)
            prediction = self.family.predict(self.denoiser, model_input)
            measured[sigma] = (prediction - noisy.target).square().mean().item()
        return measured

    def loss(self, targets: Tensor, references: Tensor | None, caption: str) -> float:
        """Return the mean over the noise levels."""
        return sum(self.losses(targets, references, caption).values()) / len(SIGMAS)

    def draw(self, reference: Image.Image, caption: str, *, seed: int = 3) -> Image.Image:
        """Edit in four steps, through the stock pipeline."""
        request = ValidationRequest(
            text=self.text(caption), negative_text=None, references=(reference,), width=reference.width,
            height=reference.height, steps=4, guidance=1.0, guidance_real=1.0, seed=seed,
        )  # fmt: skip
        return self._sampler(request)
