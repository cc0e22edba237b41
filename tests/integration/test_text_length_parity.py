"""A checkpoint whose T5 tokenizer allows 64 tokens: texts and images equal the stock pipeline's at 64."""

import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from difftrain import ValidationRequest
from difftrain_flux.built_in import TINY, TINY_FOLDER
from difftrain_flux.family import FluxFamily
from difftrain_flux_kontext.flavour import Kontext

CPU = torch.device("cpu")
SIZE = 64
CAPTIONS = ("make it black and white", "word " * 99, "")


@pytest.fixture(scope="module")
def parts():
    """Family, flavour and location."""
    family, flavour = FluxFamily(), Kontext()
    return family, flavour, family.locate(TINY, flavour)


@pytest.fixture(scope="module")
def stock():
    pipeline = FluxKontextPipeline.from_pretrained(TINY_FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def texts(parts):
    family, flavour, location = parts
    return family.load_text_encoder(location, flavour, CPU, torch.float32).encode(CAPTIONS)


def test_texts_equal_the_stock_encoding_at_64_tokens(stock, texts):
    for caption, text in zip(CAPTIONS, texts, strict=True):
        with torch.no_grad():
            sequence, pooled, _ = stock.encode_prompt(caption, max_sequence_length=64)
        assert text["prompt_embeds"].shape[0] == 64
        assert torch.equal(text["prompt_embeds"], sequence[0])
        assert torch.equal(text["pooled_prompt_embeds"], pooled[0])


def test_images_equal_those_of_the_stock_pipeline_asked_in_words_at_64_tokens(parts, stock, texts):
    family, flavour, location = parts
    reference = Image.effect_mandelbrot((SIZE, SIZE), (-2, -1, 1, 1), 50).convert("RGB")
    encoder = family.load_image_encoder(location, CPU, torch.float32, tiling=False, slicing=False)
    sampler = family.make_sampler(location, flavour, stock.transformer, encoder, CPU, torch.float32)
    ours = sampler(
        ValidationRequest(
            text=texts[0], negative_text=None, references=(reference,), width=SIZE, height=SIZE, steps=2, guidance=2.5,
            guidance_real=1.0, seed=1,
        )
    )  # fmt: skip
    expected = stock(
        image=reference, prompt=CAPTIONS[0], max_sequence_length=64, width=SIZE, height=SIZE, max_area=SIZE * SIZE,
        _auto_resize=False, num_inference_steps=2, guidance_scale=2.5, generator=torch.Generator().manual_seed(1),
    ).images[0]  # fmt: skip
    assert ours.tobytes() == expected.tobytes()
