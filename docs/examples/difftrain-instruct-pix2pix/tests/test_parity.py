"""Our encoders, noise, forward and sampler against the stock pipeline and scheduler: float32, random checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionInstructPix2PixPipeline
from PIL import Image
from tiny_checkpoint import save_tiny
from torch import Tensor

from difftrain import Batch, DiffusersFiles, NoisyBatch, ValidationRequest, read_json
from difftrain.testing import check_family
from difftrain_instruct_pix2pix.family import InstructPix2Pix, Original

CPU = torch.device("cpu")
SIZE = (96, 64)
PROMPT, NEGATIVE = "make it blue", "blurred"
FAMILY, FLAVOUR = InstructPix2Pix(), Original(pix2pix_image_guidance=1.8)


def image(seed: int) -> Image.Image:
    """Return smooth colours."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize(SIZE, Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(scope="module")
def location(checkpoint):
    return FAMILY.locate(str(checkpoint), FLAVOUR)


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def unet(location):
    """Return our module: empty, then filled from the weight files."""
    unet = FAMILY.empty_denoiser(location)
    unet.load_state_dict(dict(FAMILY.denoiser_weights(location)), assign=True)
    return unet.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def image_encoder(location):
    return FAMILY.load_image_encoder(location, CPU, torch.float32, tiling=False, slicing=False)


@pytest.fixture(scope="module")
def texts(location):
    return FAMILY.load_text_encoder(location, FLAVOUR, CPU, torch.float32).encode([PROMPT, NEGATIVE, "a" * 200])


@dataclass(frozen=True, kw_only=True)
class Call:
    """Input and output of the stock pipeline's U-Net in one step: three samples with true guidance."""

    sample: Tensor
    timestep: Tensor
    text: Tensor
    output: Tensor


@pytest.fixture(scope="module")
def calls(pipeline):
    found = []

    def keep(_module: Any, arguments: Any, named: Any, output: Any) -> None:
        sample, timestep = arguments
        text = named["encoder_hidden_states"]
        found.append(Call(sample=sample, timestep=timestep, text=text, output=output[0]))

    handle = pipeline.unet.register_forward_hook(keep, with_kwargs=True)
    pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, image=image(1), num_inference_steps=3,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    )  # fmt: skip
    handle.remove()
    return found


def our_input(unet: Any, call: Call, reference: Tensor | None, text: Any) -> Any:
    """Return our input at the latents and the timestep of the stock call."""
    noisy = call.sample[:1, :4]
    noisy_batch = NoisyBatch(
        noisy=noisy, sigma=torch.ones(1), timestep=call.timestep[None], target=torch.zeros_like(noisy)
    )
    references = [] if reference is None else [reference]
    batch = Batch(latents=noisy, references=references, text=FAMILY.collate_text([text]))
    model_input = FAMILY.build_input(noisy_batch, batch, unet)
    return FLAVOUR.extend_input(FAMILY, model_input, batch) if references else model_input


def test_prediction_equals_the_stock_pipelines(calls, unet, image_encoder, texts):
    reference, _ = image_encoder.encode(to_pixels(image(1)))
    # in the pipeline's order: image and text, image alone, neither
    ways = ((reference, texts[0]), (reference, texts[1]), (None, texts[1]))
    assert len(calls) == 3
    largest = 0.0
    for call in calls:
        for number, (seen, text) in enumerate(ways):
            model_input = our_input(unet, call, seen, text)
            with torch.no_grad():
                prediction = FAMILY.predict(unet, model_input)
            torch.testing.assert_close(model_input.image[0], call.sample[number, 4:], atol=1e-5, rtol=0)
            torch.testing.assert_close(model_input.prompt_embeds[0], call.text[number], atol=1e-5, rtol=0)
            torch.testing.assert_close(prediction[0], call.output[number], atol=1e-5, rtol=0)
            largest = max(largest, float((prediction[0] - call.output[number]).abs().max()))
    print(f"largest difference {largest:.1e}, mean size {calls[0].output.abs().mean():.1e}")


def test_text_equals_the_stock_encoding(pipeline, texts):
    for caption, text in zip((PROMPT, NEGATIVE, "a" * 200), texts, strict=True):
        with torch.no_grad():
            expected = pipeline._encode_prompt(caption, CPU, 1, False)
        torch.testing.assert_close(text["prompt_embeds"], expected[0], atol=1e-5, rtol=0)


def test_captions_that_are_cut_are_named(location):
    encoder = FAMILY.load_text_encoder(location, FLAVOUR, CPU, torch.float32)
    assert encoder.cut_captions(["short", "a" * 75, "a" * 76]) == ["a" * 76]


def test_latents_are_the_stock_encodings_times_the_scaling_factor(pipeline, image_encoder):
    pixels = to_pixels(image(2))
    mean, std = image_encoder.encode(pixels)
    with torch.no_grad():
        unscaled = pipeline.prepare_image_latents(pixels, 1, 1, torch.float32, CPU, False)
        drawn = pipeline.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    factor = pipeline.vae.config.scaling_factor
    torch.testing.assert_close(mean, unscaled * factor, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean + std * noise, drawn * factor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noisy_latents_and_target_are_the_schedulers(checkpoint, kind, monkeypatch, location):
    config = read_json(checkpoint / "scheduler" / "scheduler_config.json") | {"prediction_type": kind}
    monkeypatch.setattr(DiffusersFiles, "config", lambda *_: config)
    scheduler = DDPMScheduler.from_config(config)
    latents, noise = torch.randn(2, 4, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.0, 0.2501, 0.9995, 1.0])
    made = FAMILY.noise_process(location).add_noise(latents, sigma, noise)
    assert made.timestep.tolist() == [0, 250, 999, 999]
    velocity = scheduler.get_velocity(latents, noise, made.timestep)
    assert torch.equal(made.noisy, scheduler.add_noise(latents, noise, made.timestep))
    assert torch.equal(made.target, noise if kind == "epsilon" else velocity)
    assert torch.equal(made.sigma, sigma)


def request(texts: Any, **changes: Any) -> ValidationRequest:
    values = {
        "text": texts[0], "negative_text": texts[1], "references": (image(1),), "width": SIZE[0], "height": SIZE[1],
        "steps": 3, "guidance": 1.0, "guidance_real": 4.0, "seed": 3, **changes,
    }  # fmt: skip
    return ValidationRequest(**values)


def test_sampler_draws_what_the_stock_pipeline_draws(location, pipeline, unet, image_encoder, texts):
    sampler = FAMILY.make_sampler(location, FLAVOUR, unet, image_encoder, CPU, torch.float32)

    def stock(**arguments: Any) -> Any:
        generator = torch.Generator().manual_seed(3)
        return pipeline(prompt=PROMPT, num_inference_steps=3, generator=generator, **arguments).images[0]

    guided = {"negative_prompt": NEGATIVE, "guidance_scale": 4.0, "image_guidance_scale": 1.8}
    ours, plain = sampler(request(texts)), sampler(request(texts, negative_text=None, guidance_real=1.0))
    assert np.abs(np.int16(ours) - np.int16(stock(image=image(1), **guided))).max() <= 1
    assert np.abs(np.int16(plain) - np.int16(stock(image=image(1), guidance_scale=1.0))).max() <= 1
    # without a reference its latents are empty, as in the steps that drop it
    alone = sampler(request(texts, references=()))
    assert alone.size == SIZE
    assert np.abs(np.int16(alone) - np.int16(stock(image=torch.zeros(1, 4, 8, 12), **guided))).max() <= 1
    other = FAMILY.make_sampler(location, Original(), unet, image_encoder, CPU, torch.float32)
    assert other(request(texts)).tobytes() != ours.tobytes()


def test_targets_are_linear_modules_that_the_option_chooses(unet):
    attention, more = (InstructPix2Pix(pix2pix_lora_target=kind) for kind in ("attention", "attention+ffs"))
    # four blocks, one down, one in the middle and two up: 8 layers of attention and 2 of feed-forward each
    assert len(attention.adapter_targets(unet)) == 32
    assert len(more.adapter_targets(unet)) == 40
    assert attention.fixed() != more.fixed()


def test_blocks_hold_nearly_all_weights(unet):
    held = sum(parameter.numel() for block in FAMILY.blocks(unet) for parameter in block.parameters())
    assert held > 0.9 * sum(parameter.numel() for parameter in unet.parameters())


def test_family_holds_what_every_family_must(location, tmp_path):
    check_family(FAMILY, FLAVOUR, location)
    check_family(
        FAMILY, FLAVOUR, FAMILY.locate(str(save_tiny(tmp_path / "v", prediction_type="v_prediction")), FLAVOUR)
    )
