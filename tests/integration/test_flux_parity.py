"""Our training forward, encoders and sampler against the stock diffusers pipelines, float32, small random model."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from difftrain import Batch, ModelFlavour, ModelLocation, NoisyBatch, ValidationRequest
from difftrain.testing import load_denoiser
from difftrain_flux.built_in import TINY_RANDOM, TINY_RANDOM_IDENTITY
from difftrain_flux.family import FluxFamily
from difftrain_flux.flavours import Dev, Schnell
from difftrain_flux.forward import FluxInput
from difftrain_flux.packing import unpack
from difftrain_flux_kontext.flavour import Kontext

CPU = torch.device("cpu")
SIZE = 64
CAPTIONS = ["make the sky red", ""]


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / TINY_RANDOM_IDENTITY
    return ModelLocation(name=TINY_RANDOM, identity=TINY_RANDOM_IDENTITY, path=folder)


@pytest.fixture(scope="module")
def family():
    # the guidance that the pipeline call below uses
    return FluxFamily(flux_guidance_value=2.5)


@pytest.fixture(scope="module")
def denoiser(location, family):
    return load_denoiser(family, location)


@pytest.fixture(scope="module")
def image_encoder(location, family):
    return family.load_image_encoder(location, CPU, torch.float32, tiling=False, slicing=False)


@pytest.fixture(scope="module")
def texts(location, family):
    return family.load_text_encoder(location, Kontext(), CPU, torch.float32).encode(CAPTIONS)


@pytest.fixture(scope="module")
def stock(location, denoiser):
    return {
        kind: kind.from_pretrained(location.path, torch_dtype=torch.float32)
        for kind in (FluxKontextPipeline, FluxPipeline)
    }


def new_image(seed: int = 0, width: int = SIZE, height: int = SIZE) -> Image.Image:
    """Return smooth colours."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


@dataclass
class Call:
    """Input and output of a stock pipeline's transformer."""

    arguments: dict[str, Any]
    prediction: Tensor


def stock_call(pipeline, text, **arguments) -> Call:
    """Run one step of a stock pipeline and record its transformer's call."""
    caught = {}

    def keep(_module, _args, kwargs, output):
        caught["call"] = Call(arguments=kwargs, prediction=output[0])

    pipeline.set_progress_bar_config(disable=True)
    handle = pipeline.transformer.register_forward_hook(keep, with_kwargs=True)
    batched = {name: tensor[None] for name, tensor in text.items()}
    generator = torch.Generator().manual_seed(5)
    sizes = {"width": SIZE, "height": SIZE, "num_inference_steps": 1, "guidance_scale": 2.5}
    pipeline(**batched, **sizes, generator=generator, output_type="latent", **arguments)
    handle.remove()
    return caught["call"]


def our_input(family, flavour, denoiser, call, text, references=()) -> FluxInput:
    """Return our input for the latents and the noise level of a stock call."""
    cells = SIZE // 8
    latents = unpack(call.arguments["hidden_states"][:, : cells * cells // 4], cells, cells)
    sigma = call.arguments["timestep"].float()
    noisy = NoisyBatch(noisy=latents, sigma=sigma, timestep=sigma, target=torch.zeros_like(latents))
    batch = Batch(latents=latents, references=list(references), text=family.collate_text([text]))
    model_input = family.build_input(noisy, batch, denoiser)
    return flavour.extend_input(family, model_input, batch) if batch.references else model_input


def kontext_input(family, denoiser, image_encoder, text, call, image) -> FluxInput:
    mean, _ = image_encoder.encode(to_pixels(image))
    return our_input(family, Kontext(), denoiser, call, text, [mean])


@pytest.fixture(scope="module")
def kontext_call(stock, texts):
    return stock_call(stock[FluxKontextPipeline], texts[0], image=new_image(), max_area=SIZE * SIZE, _auto_resize=False)


def test_kontext_ids_equal_the_stock_pipelines(family, denoiser, image_encoder, texts, kontext_call):
    model_input = kontext_input(family, denoiser, image_encoder, texts[0], kontext_call, new_image())
    assert torch.equal(model_input.ids, kontext_call.arguments["img_ids"])


def test_kontext_prediction_equals_the_stock_pipelines(family, denoiser, image_encoder, texts, kontext_call):
    model_input = kontext_input(family, denoiser, image_encoder, texts[0], kontext_call, new_image())
    with torch.no_grad():
        prediction = family.predict(denoiser, model_input)
    cells = SIZE // 8
    expected = unpack(kontext_call.prediction[:, : cells * cells // 4], cells, cells)
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=0)


def test_reference_of_another_size_gives_the_stock_ids_and_prediction(family, denoiser, image_encoder, texts, stock):
    image = new_image(1, 96, 48)
    call = stock_call(stock[FluxKontextPipeline], texts[0], image=image, max_area=SIZE * SIZE, _auto_resize=False)
    model_input = kontext_input(family, denoiser, image_encoder, texts[0], call, image)
    assert torch.equal(model_input.ids, call.arguments["img_ids"])
    with torch.no_grad():
        prediction = family.predict(denoiser, model_input)
    torch.testing.assert_close(prediction, unpack(call.prediction[:, :16], 8, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["offset", "index"])
def test_several_references_have_the_ids_and_tokens_of_training(family, denoiser, image_encoder, texts, stock, rule):
    images = [new_image(1, 96, 48), new_image(2, 48, 80), new_image(3)]
    flavour = Kontext(reference_ids=rule)
    pipeline = flavour.pipeline_class()(**stock[FluxKontextPipeline].components)
    call = stock_call(pipeline, texts[0], image=images, max_area=SIZE * SIZE, _auto_resize=False)
    means = [image_encoder.encode(to_pixels(image))[0] for image in images]
    model_input = our_input(family, flavour, denoiser, call, texts[0], means)
    assert torch.equal(model_input.ids, call.arguments["img_ids"])
    torch.testing.assert_close(model_input.tokens, call.arguments["hidden_states"], atol=1e-5, rtol=0)
    with torch.no_grad():
        prediction = family.predict(denoiser, model_input)
    torch.testing.assert_close(prediction, unpack(call.prediction[:, :16], 8, 8), atol=1e-5, rtol=0)


def test_further_references_are_resized_as_the_first(stock, texts):
    image = new_image(1, 96, 48)
    pipeline = Kontext().pipeline_class()(**stock[FluxKontextPipeline].components)
    call = stock_call(pipeline, texts[0], image=[image, image], max_area=SIZE * SIZE)
    references = call.arguments["hidden_states"][0, 16:].chunk(2)
    assert len(references[0]) > 4000  # a megapixel
    torch.testing.assert_close(*references)


def test_with_one_reference_the_pipeline_does_what_the_stock_one_does(stock, texts):
    ours = Kontext().pipeline_class()(**stock[FluxKontextPipeline].components)
    calls = [
        stock_call(one, texts[0], image=new_image(1, 96, 48), max_area=SIZE * SIZE, _auto_resize=False)
        for one in (ours, stock[FluxKontextPipeline])
    ]
    assert torch.equal(calls[0].prediction, calls[1].prediction)


@pytest.mark.parametrize("kind", [FluxPipeline, FluxKontextPipeline])
def test_text_to_image_equals_the_stock_pipelines(family, denoiser, texts, stock, kind):
    call = stock_call(stock[kind], texts[0], **({"max_area": SIZE * SIZE} if kind is FluxKontextPipeline else {}))
    model_input = our_input(family, Dev(), denoiser, call, texts[0])
    assert torch.equal(model_input.ids, call.arguments["img_ids"])
    with torch.no_grad():
        prediction = family.predict(denoiser, model_input)
    torch.testing.assert_close(prediction, unpack(call.prediction, 8, 8), atol=1e-5, rtol=0)


def test_reference_latents_equal_the_stock_encoding(stock, image_encoder):
    pipeline, image = stock[FluxKontextPipeline], new_image(2)
    pixels = pipeline.image_processor.preprocess(image, SIZE, SIZE)
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, torch.Generator())
    assert torch.equal(image_encoder.encode(pixels)[0], expected)
    torch.testing.assert_close(image_encoder.encode(to_pixels(image))[0], expected, atol=1e-5, rtol=0)


def test_drawn_latents_have_the_posterior_of_the_stock_vae(stock, image_encoder):
    pipeline = stock[FluxKontextPipeline]
    mean, std = image_encoder.encode(to_pixels(new_image(2)))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    posterior = pipeline.vae.encode(to_pixels(new_image(2))).latent_dist
    drawn = posterior.sample(torch.Generator().manual_seed(3))
    expected = (drawn - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(mean + std * noise, expected)


@pytest.mark.parametrize(("flavour", "length"), [(Kontext(), 512), (Schnell(), 256)])
def test_text_equals_the_stock_encoding(location, family, stock, flavour: ModelFlavour, length):
    embeds = family.load_text_encoder(location, flavour, CPU, torch.float32).encode(CAPTIONS)
    for caption, text in zip(CAPTIONS, embeds, strict=True):
        with torch.no_grad():
            sequence, pooled, _ = stock[FluxPipeline].encode_prompt(caption, max_sequence_length=length)
        assert text["prompt_embeds"].shape[0] == length
        assert torch.equal(text["prompt_embeds"], sequence[0])
        assert torch.equal(text["pooled_prompt_embeds"], pooled[0])


def test_different_captions_have_different_embeddings(texts):
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert not torch.allclose(texts[0][name], texts[1][name], atol=1e-2)


def random_batch(family, texts, references: int = 1, sigmas=(0.3, 0.8)):
    """Return two samples with references of another size than the target."""
    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(2, 16, 8, 8, generator=generator)
    levels = torch.tensor(sigmas)
    noisy = NoisyBatch(noisy=latents, sigma=levels, timestep=levels, target=torch.zeros_like(latents))
    images = [torch.randn(2, 16, 8, 4 + 2 * slot, generator=generator) for slot in range(references)]
    return noisy, Batch(latents=latents, references=images, text=family.collate_text(texts))


def one_of(noisy: NoisyBatch, batch: Batch, index: int):
    part = slice(index, index + 1)
    return (
        NoisyBatch(
            noisy=noisy.noisy[part],
            sigma=noisy.sigma[part],
            timestep=noisy.timestep[part],
            target=noisy.target[part],
        ),
        Batch(
            latents=batch.latents[part],
            references=[reference[part] for reference in batch.references],
            text={name: tensor[part] for name, tensor in batch.text.items()},
        ),
    )


def predict(family, denoiser, noisy, batch):
    with torch.no_grad():
        return family.predict(
            denoiser, Kontext().extend_input(family, family.build_input(noisy, batch, denoiser), batch)
        )


def test_batch_of_two_equals_two_batches_of_one(family, denoiser, texts):
    noisy, batch = random_batch(family, texts)
    both = predict(family, denoiser, noisy, batch)
    for index in range(2):
        alone = predict(family, denoiser, *one_of(noisy, batch, index))
        torch.testing.assert_close(both[index : index + 1], alone, atol=1e-5, rtol=0)


def test_cut_before_the_output_layers_changes_no_value(family, denoiser, texts):
    noisy, batch = random_batch(family, texts, references=2)
    model_input = Kontext().extend_input(family, family.build_input(noisy, batch, denoiser), batch)
    with torch.no_grad():
        (uncut,) = denoiser(
            hidden_states=model_input.tokens,
            timestep=model_input.sigma,
            guidance=model_input.guidance,
            pooled_projections=model_input.pooled,
            encoder_hidden_states=model_input.prompt_embeds,
            txt_ids=torch.zeros(512, 3),
            img_ids=model_input.ids,
            return_dict=False,
        )
        cut = family.predict(denoiser, model_input)
    assert uncut.shape[1] == 16 + 8 + 12
    torch.testing.assert_close(cut, unpack(uncut[:, :16], 8, 8), atol=1e-6, rtol=0)


def test_cut_leaves_no_hook_behind(family, denoiser, texts):
    predict(family, denoiser, *random_batch(family, texts))
    assert not denoiser.norm_out._forward_pre_hooks


def test_wrapped_denoiser_gives_the_same(family, denoiser, texts):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    noisy, batch = random_batch(family, texts)
    plain = predict(family, denoiser, noisy, batch)
    assert torch.equal(predict(family, Wrapper(denoiser), noisy, batch), plain)


def test_bfloat16_model_predicts_nearly_what_float32_does(location, denoiser, texts):
    # the transformer embeds 1000 * sigma and 1000 * guidance: numbers that bfloat16 represents exactly
    family = FluxFamily(flux_guidance_value=2.0)
    half = load_denoiser(family, location, dtype=torch.bfloat16)
    noisy, batch = random_batch(family, texts, sigmas=(0.25, 0.5))
    prediction = predict(family, half, noisy, batch.to(CPU, torch.bfloat16)).float()
    expected = predict(family, denoiser, noisy, batch)
    assert (prediction - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_bfloat16_encoders_give_finite_values_of_that_dtype(location, family):
    encoder = family.load_image_encoder(location, CPU, torch.bfloat16, tiling=True, slicing=True)
    mean, std = encoder.encode(to_pixels(new_image()))
    (text,) = family.load_text_encoder(location, Dev(), CPU, torch.bfloat16).encode(["a house"])
    for tensor in (mean, std, *text.values()):
        assert tensor.dtype is torch.bfloat16
        assert tensor.isfinite().all()


def request(texts, *, references=(), seed=1, size=(SIZE, SIZE), **changes) -> ValidationRequest:
    values = {"negative_text": None, "steps": 2, "guidance": 2.5, "guidance_real": 1.0, **changes}
    return ValidationRequest(text=texts[0], references=references, width=size[0], height=size[1], seed=seed, **values)


@pytest.fixture
def sampler(location, family, denoiser, image_encoder):
    return family.make_sampler(location, Kontext(), denoiser, image_encoder, CPU, torch.float32)


def test_sampler_draws_what_the_stock_pipeline_draws(sampler, stock, texts):
    image = new_image(4, 128, 128)
    ours = sampler(request(texts, references=(image,)))
    pipeline = stock[FluxKontextPipeline]
    expected = pipeline(
        **{name: tensor[None] for name, tensor in texts[0].items()},
        image=image.resize((64, 64), Image.Resampling.LANCZOS),
        width=SIZE,
        height=SIZE,
        max_area=SIZE * SIZE,
        _auto_resize=False,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert ours.tobytes() == expected.tobytes()


def test_sampler_keeps_the_asked_size_in_every_shape(sampler, texts):
    assert sampler(request(texts, size=(96, 48))).size == (96, 48)


def test_sampler_uses_the_negative_prompt_only_with_real_guidance(sampler, texts):
    plain = sampler(request(texts)).tobytes()
    assert sampler(request(texts, negative_text=texts[1])).tobytes() == plain
    assert sampler(request(texts, negative_text=texts[1], guidance_real=3.0)).tobytes() != plain


def test_sampler_leaves_training_modes_and_random_state_alone(sampler, denoiser, texts):
    denoiser.train()
    denoiser.norm_out.eval()
    before = torch.random.get_rng_state()
    sampler(request(texts))
    assert denoiser.training
    assert not denoiser.norm_out.training
    assert torch.equal(torch.random.get_rng_state(), before)
    denoiser.eval()


def test_sampler_takes_a_vae_of_another_dtype(location, family, image_encoder, texts):
    half = load_denoiser(family, location, dtype=torch.bfloat16)
    sampler = family.make_sampler(location, Kontext(), half, image_encoder, CPU, torch.bfloat16)
    assert sampler(request(texts, references=(new_image(),))).size == (SIZE, SIZE)
    assert image_encoder.vae.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_weights_are_those_of_from_pretrained(location, family, dtype, stock):
    theirs = FluxTransformer2DModel.from_pretrained(location.path, subfolder="transformer", torch_dtype=dtype)
    ours = load_denoiser(family, location, dtype=dtype)
    state, wanted = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(wanted)
    assert all(
        state[name].dtype == tensor.dtype and torch.equal(state[name], tensor) for name, tensor in wanted.items()
    )
    assert {key: value for key, value in ours.config.items() if key[0] != "_"} == {
        key: value for key, value in theirs.config.items() if key[0] != "_"
    }


def test_loading_every_part_prints_nothing(tmp_path):
    # remarks that optional packages make as they are imported are silenced by the command, see test_quiet_runs
    code = (
        "import logging; names = ('torchao', 'bitsandbytes', 'diffusers.quantizers', 'torch.utils._pytree');"
        "[logging.getLogger(name).setLevel(logging.ERROR) for name in names];"
        "import torch; from difftrain.testing import load_denoiser; from difftrain_flux.family import FluxFamily;"
        "from difftrain_flux_kontext.flavour import Kontext;"
        "family, flavour, cpu, kind = FluxFamily(), Kontext(), torch.device('cpu'), torch.float32;"
        "place = family.locate('tiny-random', flavour);"
        "family.load_text_encoder(place, flavour, cpu, kind).encode(['a' * 999]);"
        "vae = family.load_image_encoder(place, cpu, kind, tiling=False, slicing=False);"
        "family.make_sampler(place, flavour, load_denoiser(family, place, dtype=kind), vae, cpu, kind)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout + run.stderr == ""
