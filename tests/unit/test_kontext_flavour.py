"""What the kontext flavour passes to the stock pipeline, and the sequence it builds for training."""

import pytest
import torch
from PIL import Image

from difftrain import Batch, NoisyBatch, ValidationRequest
from difftrain_flux.family import FluxFamily
from difftrain_flux.forward import build_input
from difftrain_flux_kontext.flavour import Kontext


def arguments(width, height, *references):
    request = ValidationRequest(
        text={}, negative_text=None, references=references, width=width, height=height,
        steps=1, guidance=2.5, guidance_real=1.0, seed=0,
    )  # fmt: skip
    return Kontext().pipeline_arguments(request)


def new_image(width, height):
    return Image.linear_gradient("L").convert("RGB").resize((width, height))


@pytest.mark.parametrize("size", [(1024, 1024), (1536, 1024), (512, 512)])
def test_real_sizes_leave_reference_sizing_to_the_pipeline(size):
    reference = new_image(1000, 700)
    given = arguments(*size, reference)
    assert given["_auto_resize"] is True
    assert given["image"] is reference


def test_area_is_always_the_asked_one_so_that_the_pipeline_keeps_the_size():
    assert arguments(768, 1344)["max_area"] == 768 * 1344


def test_small_images_keep_small_references_as_they_are():
    reference = new_image(64, 48)
    given = arguments(96, 96, reference)
    assert given["_auto_resize"] is False
    assert given["image"] is reference


def test_small_images_reduce_large_references_to_their_own_area():
    given = arguments(128, 128, new_image(1600, 800))
    assert given["image"].size == (176, 96)


def test_without_references_the_pipeline_draws_from_text():
    assert "image" not in arguments(1024, 1024)


def test_the_pipeline_is_shown_all_references_in_order():
    first, second = new_image(1024, 1024), new_image(512, 512)
    assert arguments(1024, 1024, first, second)["image"] == [first, second]


def test_sequence_is_target_then_references_in_order():
    family = FluxFamily()
    latents = torch.zeros(1, 16, 4, 4)
    references = [torch.ones(1, 16, 4, 8), torch.full((1, 16, 2, 2), 2.0)]
    text = {"prompt_embeds": torch.zeros(1, 3, 8), "pooled_prompt_embeds": torch.zeros(1, 8)}
    batch = Batch(latents=latents, references=references, text=text)
    level = torch.tensor([0.5])
    noisy = NoisyBatch(noisy=latents, sigma=level, timestep=level, target=latents)
    model_input = Kontext().extend_input(family, build_input(noisy, batch, None), batch)
    assert model_input.tokens[0, :, 0].tolist() == [0] * 4 + [1] * 8 + [2]
    # the first reference is wider than high, so the second is placed below it
    assert model_input.ids[4:].tolist()[0] == [1, 0, 0]
    assert model_input.ids[-1].tolist() == [1, 2, 0]
    assert model_input.target_tokens == 4
