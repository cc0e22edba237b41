"""Our encoders, forward and sampler against the stock pipelines, float32, tiny random checkpoints."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from tiny_checkpoint import WIDTH, make_pipeline
from torch import Tensor

from difftrain import Batch, GeometryRules, ModelError, NoisyBatch, ValidationRequest, assign_bucket
from difftrain.testing import check_family
from difftrain_qwen_image_edit.family import Edit, Edit2509, QwenImageEdit

CPU = torch.device("cpu")
SIZE = (96, 64)
SMALL, FULL = SIZE[0] * SIZE[1], 1024 * 1024
"""Area of references: as our sampler resizes them for a small image, and as the stock pipelines always do."""
PROMPT, NEGATIVE = "make it blue", " "
FLAVOURS = {"edit": Edit(), "edit-2509": Edit2509()}
PIPELINES = {"edit": QwenImageEditPipeline, "edit-2509": QwenImageEditPlusPipeline}
MODULES = {"edit": pipeline_qwenimage_edit, "edit-2509": pipeline_qwenimage_edit_plus}
STOCK_SIZES = {name: module.calculate_dimensions for name, module in MODULES.items()}


def image(seed: int, size: tuple[int, int]) -> Image.Image:
    """Return smooth colours."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


class Setting:
    """One flavour and its stock pipeline, with references that the pipeline resizes to an area."""

    def __init__(self, name: str, folder: Path, area: int, references: list[Image.Image]) -> None:
        self.flavour, self.family, self.area = FLAVOURS[name], QwenImageEdit(), area
        self.location = self.family.locate(str(folder), self.flavour)
        self.pipeline = make_pipeline(PIPELINES[name])
        self.text_encoder = self.family.load_text_encoder(self.location, self.flavour, CPU, torch.float32)
        self.image_encoder = self.family.load_image_encoder(
            self.location, CPU, torch.float32, tiling=False, slicing=False
        )
        self.references = references
        self.encoded = [self._resized(one, self.stock_size(one.size, area)) for one in references]
        views = [self.family.text_view(one.size, self.flavour) for one in self.encoded]
        if area < FULL:  # the small area bounds the view too
            views = [one.size for one in self.encoded]
        self.seen = [self._resized(*pair) for pair in zip(references, views, strict=True)]

    def texts(self, *captions: str, references: bool = True) -> list[Any]:
        return self.text_encoder.encode(captions, [self.seen] * len(captions) if references else None)

    def stock_size(self, size: tuple[int, int], area: int) -> tuple[int, int]:
        return STOCK_SIZES[self.flavour.name](area, size[0] / size[1])[:2]

    def arguments(self) -> dict[str, Any]:
        images = self.references if self.flavour.max_references > 1 else self.references[0]
        size = {"width": SIZE[0], "height": SIZE[1], "num_inference_steps": 2}
        return {"image": images, **size, "generator": torch.Generator().manual_seed(3)}

    def stock(self, **arguments: Any) -> Any:
        """Return what the stock pipeline draws for our prompt."""
        name, stock = self.flavour.name, STOCK_SIZES[self.flavour.name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MODULES[name], "calculate_dimensions", lambda area, ratio: stock(min(area, self.area), ratio))
            return self.pipeline(prompt=PROMPT, **self.arguments(), **arguments).images[0]

    @staticmethod
    def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize(size, Image.Resampling.LANCZOS)


@pytest.fixture(scope="module", params=["edit", "edit-2509"])
def setting(request, checkpoints):
    references = [image(1, (120, 70)), image(2, (50, 90))][: FLAVOURS[request.param].max_references]
    return Setting(request.param, checkpoints[request.param], SMALL, references)


def calls_of(setting: Setting, **arguments: Any) -> list[MappingProxyType[str, Any]]:
    """Return inputs of the stock pipeline's transformer in the denoising loop, and its outputs for the target."""
    calls = []

    def keep(_module: Any, _args: Any, kwargs: Any, output: Any) -> None:
        calls.append(MappingProxyType({**kwargs, "output": output[0]}))

    handle = setting.pipeline.transformer.register_forward_hook(keep, with_kwargs=True)
    setting.stock(output_type="latent", **arguments)
    handle.remove()
    return calls


def ours(setting: Setting, call: MappingProxyType[str, Any], references: list[Tensor], text: Any) -> tuple[Any, Tensor]:
    """Return our input and prediction at the latents and the noise level of a stock call."""
    columns, rows = SIZE[0] // 16, SIZE[1] // 16
    noisy = setting.pipeline._unpack_latents(call["hidden_states"][:, : rows * columns], SIZE[1], SIZE[0], 8)
    timestep = call["timestep"]
    noisy_batch = NoisyBatch(noisy=noisy, sigma=timestep, timestep=timestep, target=torch.zeros_like(noisy))
    batch = Batch(latents=noisy, references=references, text=setting.family.collate_text([text]))
    model_input = setting.family.build_input(noisy_batch, batch, setting.pipeline.transformer)
    model_input = setting.flavour.extend_input(setting.family, model_input, batch)
    with torch.no_grad():
        return model_input, setting.family.predict(setting.pipeline.transformer, model_input)


def assert_parity(setting: Setting) -> None:
    """Check that our input and prediction equal the stock pipeline's, at both steps."""
    calls = calls_of(setting, true_cfg_scale=1.0)
    assert len(calls) == 2
    references = [setting.image_encoder.encode(to_pixels(image))[0] for image in setting.encoded]
    (text,) = setting.texts(PROMPT)
    for call in calls:
        model_input, prediction = ours(setting, call, references, text)
        assert model_input["img_shapes"] == call["img_shapes"]
        assert "encoder_hidden_states_mask" not in model_input
        assert call["encoder_hidden_states_mask"] is None
        for name in ("hidden_states", "encoder_hidden_states", "timestep"):
            torch.testing.assert_close(model_input[name], call[name], atol=1e-5, rtol=0)
        target = call["output"][:, : SIZE[0] * SIZE[1] // 256]
        expected = setting.pipeline._unpack_latents(target, SIZE[1], SIZE[0], 8)
        torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=0)
        difference, size = (prediction - expected).abs().max(), expected.abs().mean()
        print(f"{setting.flavour.name}: largest difference {difference:.1e}, mean size {size:.1e}")


def test_prediction_equals_the_stock_pipelines(setting):
    assert_parity(setting)


def test_prediction_equals_the_stock_pipelines_at_its_own_size_of_references(checkpoints):
    assert_parity(Setting("edit-2509", checkpoints["edit-2509"], FULL, [image(1, (700, 400))]))


def test_text_equals_the_stock_encoding(setting):
    images = setting.seen if setting.flavour.max_references > 1 else setting.seen[0]
    for caption, text in zip((PROMPT, ""), setting.texts(PROMPT, ""), strict=True):
        with torch.no_grad():
            expected, mask = setting.pipeline.encode_prompt(caption, images)
        assert mask is None
        torch.testing.assert_close(text["prompt_embeds"], expected[0], atol=1e-5, rtol=0)


def test_text_depends_on_the_reference_and_can_do_without(setting):
    with_references, without = setting.texts(PROMPT), setting.texts(PROMPT, references=False)
    assert len(with_references[0]["prompt_embeds"]) > len(without[0]["prompt_embeds"])
    other = setting.text_encoder.encode([PROMPT], [[image(9, reference.size) for reference in setting.seen]])
    assert not torch.allclose(with_references[0]["prompt_embeds"], other[0]["prompt_embeds"], atol=1e-3)


def test_texts_of_the_flavours_have_keys_of_their_own(setting):
    assert len({setting.family.text_identity(setting.location, flavour) for flavour in FLAVOURS.values()}) == 2


def test_view_is_what_the_pipeline_hands_its_text_encoder(setting):
    for size in ((1024, 1024), (1344, 768), (544, 1920)):
        expected = setting.stock_size(size, pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE)
        view = setting.family.text_view(size, setting.flavour)
        assert view == (expected if setting.flavour.name == "edit-2509" else size)


def test_buckets_of_1024_are_the_sizes_that_the_pipeline_chooses(setting):
    rules = GeometryRules(resolution=1024, resolution_type="pixel_area", alignment=32)
    for size in ((1920, 1080), (4000, 3000), (1080, 1920), (640, 480), (1500, 500)):
        assert assign_bucket(size, rules).bucket == setting.stock_size(size, FULL)


def test_room_of_a_text_counts_the_tokens_of_its_references(setting):
    sizes = [(1056, 768), (640, 480)]
    images = [Image.new("RGB", size) for size in sizes]
    patches = setting.text_encoder._images(images=images, return_tensors="pt")["image_grid_thw"].prod(dim=1).sum()
    place = (setting.location, setting.flavour, 4)
    with_views, alone = (setting.family.text_bytes(*place, views) for views in (sizes, ()))
    assert with_views - alone == int(patches) // 4 * WIDTH * 4
    assert alone >= max(text["prompt_embeds"].nbytes for text in setting.texts(PROMPT, "", references=False))


def test_latents_equal_the_stock_encoding(setting):
    pixels = to_pixels(setting.encoded[0])
    mean, std = setting.image_encoder.encode(pixels)
    with torch.no_grad():
        expected = setting.pipeline._encode_vae_image(pixels[:, :, None], torch.Generator())
        drawn = setting.pipeline.vae.encode(pixels[:, :, None]).latent_dist.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=0)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    config = setting.pipeline.vae.config
    shift, scale = (torch.tensor(values).view(-1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    torch.testing.assert_close(mean + std * noise, (drawn - shift) / scale, atol=1e-5, rtol=0)


def test_batch_of_two_lengths_equals_two_batches_of_one(setting):
    family, transformer = setting.family, setting.pipeline.transformer
    texts = setting.texts(PROMPT, "a much longer instruction")
    generator = torch.Generator().manual_seed(4)
    latents, reference = (torch.randn(2, 16, 1, 4, cells, generator=generator) for cells in (6, 8))
    sigma = torch.tensor([0.3, 0.8])

    def predict(part: slice) -> Tensor:
        noisy = NoisyBatch(noisy=latents[part], sigma=sigma[part], timestep=sigma[part], target=latents[part])
        text = family.collate_text(texts[part])
        batch = Batch(latents=latents[part], references=[reference[part]], text=text)
        model_input = setting.flavour.extend_input(family, family.build_input(noisy, batch, transformer), batch)
        with torch.no_grad():
            return family.predict(transformer, model_input)

    both = predict(slice(2))
    for index in range(2):
        alone = predict(slice(index, index + 1))
        torch.testing.assert_close(both[index : index + 1], alone, atol=1e-5, rtol=0)


def request_for(setting: Setting, **changes: Any) -> ValidationRequest:
    text, negative = setting.texts(PROMPT, NEGATIVE)
    values = {
        "text": text, "negative_text": negative, "references": tuple(setting.references), "width": SIZE[0],
        "height": SIZE[1], "steps": 2, "guidance": 1.0, "guidance_real": 4.0, "seed": 3, **changes,
    }  # fmt: skip
    return ValidationRequest(**values)


def test_sampler_draws_what_the_stock_pipeline_draws_with_a_negative_prompt(setting):
    arguments = (setting.image_encoder, CPU, torch.float32)
    sampler = setting.family.make_sampler(setting.location, setting.flavour, setting.pipeline.transformer, *arguments)
    ours = sampler(request_for(setting))
    assert np.abs(np.int16(ours) - np.int16(setting.stock(negative_prompt=NEGATIVE, true_cfg_scale=4.0))).max() <= 1
    plain = sampler(request_for(setting, negative_text=None))
    assert np.abs(np.int16(plain) - np.int16(setting.stock(true_cfg_scale=1.0))).max() <= 1
    assert ours.tobytes() != plain.tobytes()
    assert MODULES[setting.flavour.name].calculate_dimensions is STOCK_SIZES[setting.flavour.name]
    # and from text alone, as the text-to-image pipeline of the same weights
    (text,) = setting.texts(PROMPT, references=False)
    alone = sampler(request_for(setting, text=text, negative_text=None, references=()))
    parts = {name: part for name, part in setting.pipeline.components.items() if name != "processor"}
    pipeline = QwenImagePipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    embeds = {"prompt_embeds": text["prompt_embeds"][None], "true_cfg_scale": 1.0}
    expected = pipeline(**embeds, **{name: value for name, value in setting.arguments().items() if name != "image"})
    assert np.abs(np.int16(alone) - np.int16(expected.images[0])).max() <= 1


@pytest.mark.parametrize(("component", "key"), [("vae", "base_dim"), ("text_encoder", "vision_config")])
def test_a_part_whose_config_and_weights_do_not_fit_is_one_error(checkpoints, tmp_path, component, key):
    folder = shutil.copytree(checkpoints["edit"], tmp_path / "model")
    config = json.loads((folder / component / "config.json").read_text())
    config[key] = {**config[key], "hidden_size": 24} if isinstance(config[key], dict) else 2 * config[key]
    (folder / component / "config.json").write_text(json.dumps(config))
    family, flavour = QwenImageEdit(), Edit()
    location = family.locate(str(folder), flavour)
    load = {
        "vae": partial(family.load_image_encoder, location, tiling=False, slicing=False),
        "text_encoder": partial(family.load_text_encoder, location, flavour),
    }
    with pytest.raises(ModelError, match=f"{component} cannot be loaded: .*"):
        load[component](device=CPU, dtype=torch.float32)


def test_shift_is_what_the_pipelines_scheduler_gets(setting):
    # exp(mu) of `calculate_shift` with the published schedulers' config
    for size, tokens in (((1024, 1024), 4096), ((512, 512), 1024)):
        config = setting.pipeline.scheduler.config
        mu = pipeline_qwenimage_edit.calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        latents = torch.zeros(1, 16, 1, size[1] // 8, size[0] // 8)
        assert setting.family.sigma_shift(latents) == pytest.approx(math.exp(mu))
    assert QwenImageEdit(qwen_schedule_shift=3.0).sigma_shift(latents) == 3.0


def test_true_guidance_is_the_pipelines_own(setting):
    arguments = inspect.signature(type(setting.pipeline).__call__).parameters
    assert setting.flavour.default_guidance_real == arguments["true_cfg_scale"].default


def test_family_holds_what_every_family_must(setting):
    check_family(setting.family, setting.flavour, setting.location)
