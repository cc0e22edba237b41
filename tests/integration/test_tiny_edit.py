"""The pre-trained tiny Kontext really edits: what random weights cannot show."""

import math
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from difftrain import Batch
from difftrain.plugins.load import load_plugins
from difftrain.train.noise import add_noise
from difftrain.types import ValidationRequest

SIZE = 96
GREY = "make it black and white"


@pytest.fixture(scope="module")
def kontext():
    """Family, flavour and the loaded parts, with the embeddings of a few captions."""
    registry = load_plugins().registry
    family = registry.find("family", "flux")()
    flavour = registry.find("flavour", "kontext", family="flux")()
    location = family.locate("tiny-edit", flavour)
    device = torch.device("cpu")
    encoder = family.load_image_encoder(location, device, torch.float32, tiling=False, slicing=False)
    denoiser = family.load_denoiser(location, torch.float32)
    captions = (GREY, "invert the colours", "")
    texts = family.load_text_encoder(location, flavour, device, torch.float32).encode(captions)
    sampler = family.make_sampler(location, flavour, denoiser, encoder, device, torch.float32)
    return family, flavour, encoder, denoiser, dict(zip(captions, texts, strict=True)), sampler


def photographs():
    folder = files("difftrain") / "demo" / "photos"
    names = ("cat.jpg", "coffee.jpg", "rocket.jpg", "astronaut.jpg")
    return [ImageOps.fit(Image.open(str(folder / name)).convert("RGB"), (SIZE, SIZE)) for name in names]


def latents(encoder, pictures):
    pixels = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures]) / 127.5 - 1
    return encoder.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())[0]


def velocity_loss(kontext, targets, references, caption):
    """Mean over three noise levels, with the same noise in every call."""
    family, flavour, _, denoiser, texts, _ = kontext
    text = family.collate_text([texts[caption]] * len(targets))
    batch = Batch(latents=targets, references=[] if references is None else [references], text=text)
    losses = []
    for sigma in (0.5, 0.7, 0.9):
        noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
        noisy = add_noise(targets, torch.full((len(targets),), sigma), noise)
        model_input = family.build_input(noisy, batch, denoiser)
        if batch.references:
            model_input = flavour.extend_input(family, model_input, batch)
        with torch.no_grad():
            losses.append((family.predict(denoiser, model_input) - noisy.velocity).square().mean().item())
    return sum(losses) / len(losses)


def psnr(picture, other):
    difference = np.asarray(picture, dtype=np.float64) - np.asarray(other.convert("RGB"), dtype=np.float64)
    return 10 * math.log10(255**2 / (difference**2).mean())


def test_the_true_reference_helps_and_a_wrong_one_misleads(kontext):
    pictures = photographs()
    references = latents(kontext[2], pictures)
    targets = latents(kontext[2], [ImageOps.grayscale(picture).convert("RGB") for picture in pictures])
    true = velocity_loss(kontext, targets, references, GREY)
    shuffled = velocity_loss(kontext, targets, references.roll(1, 0), GREY)
    none = velocity_loss(kontext, targets, None, GREY)
    assert true < 0.6 * none
    assert true < 0.6 * shuffled


def test_the_instruction_is_read(kontext):
    pictures = photographs()
    references = latents(kontext[2], pictures)
    targets = latents(kontext[2], [ImageOps.grayscale(picture).convert("RGB") for picture in pictures])
    right = velocity_loss(kontext, targets, references, GREY)
    assert right < 0.8 * velocity_loss(kontext, targets, references, "invert the colours")
    assert right < 0.8 * velocity_loss(kontext, targets, references, "")


def test_the_stock_pipeline_draws_the_edit_that_was_asked_for(kontext):
    *_, texts, sampler = kontext
    picture = photographs()[1]
    wanted = ImageOps.grayscale(picture).convert("RGB")
    request = ValidationRequest(
        text=texts[GREY], negative_text=None, references=(picture,), width=SIZE, height=SIZE, steps=4, guidance=1.0,
        guidance_real=1.0, seed=3,
    )  # fmt: skip
    drawn = sampler(request)
    assert psnr(drawn, wanted) > psnr(picture, wanted) + 2
