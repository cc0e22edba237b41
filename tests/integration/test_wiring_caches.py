"""How images and captions are encoded and cached: an option that changes the result changes what is trained."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from wiring import EDITS, DataTrials

from conftest import EditPairs
from difftrain.data.files.pixels import to_pixels
from difftrain_flux.vae import FluxImageEncoder

SIZE = (96, 64)
ONE = {"train_batch_size": 4, "vae_cache_sample": "mean"}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train one step on four edits of 96x64 pixels with latents not drawn; all runs share one cache."""
    folder = tmp_path_factory.mktemp("caches")
    pairs = EditPairs(folder)
    pairs(count=4, references=None, edit_sizes=[SIZE])
    flags = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True)) | {"--max_train_steps": 1}
    flags |= {f"--{key}": value for key, value in ONE.items()}
    return DataTrials(folder, tuple(part for pair in flags.items() for part in pair))


@pytest.fixture
def seen_by_vae(monkeypatch):
    """Record the encoder and the images of each call, in the order of the calls."""
    calls = []
    encode = FluxImageEncoder.encode

    def watched(encoder, pixels):
        calls.append((encoder, pixels.clone()))
        return encode(encoder, pixels)

    monkeypatch.setattr(FluxImageEncoder, "encode", watched)
    return calls


def latents(run):
    """By the image's name."""
    return {key: tensor for fed in run.fed for key, tensor in zip(fed.batch.keys, fed.batch.latents, strict=True)}


def encoded(run, what):
    """Return how many captions or images a run encoded."""
    lines = [line for line in run.ended.err.splitlines() if line.startswith(f"encode {what} ")]
    return int(lines[0].split()[2].rstrip(":")) if lines else 0


# geometry


def test_an_image_that_is_cut_differently_is_encoded_and_trained_again(train):
    styles = ("center", "corner", "random")
    runs = {style: train.with_edits(crop=True, crop_style=style) for style in styles}
    assert all(encoded(run, "images") == 4 for run in runs.values())
    assert {tuple(tensor.shape) for run in runs.values() for tensor in latents(run).values()} == {(16, 8, 8)}
    first = [latents(run)["edits/0000"].sum().item() for run in runs.values()]
    assert len(set(first)) == 3
    assert encoded(train.with_edits({"output_dir": "again"}, crop=True), "images") == 0


@pytest.mark.parametrize(("style", "left"), [("center", 16), ("corner", 32)])
def test_the_crop_is_what_the_vae_sees(train, seen_by_vae, style, left):
    train.with_edits({"cache_dir": f"seen-{style}"}, crop=True, crop_style=style)
    with Image.open(train.folder / "edits" / "0000.png") as image:
        expected = torch.from_numpy(to_pixels(image.crop((left, 0, left + 64, 64))))
    assert any(torch.equal(pixels, expected) for _, batch in seen_by_vae for pixels in batch)


def test_random_crops_follow_the_seed(train):
    crops = [train.with_edits({"seed": seed}, crop=True, crop_style="random") for seed in (1, 2)]
    first, second = map(latents, crops)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_a_large_image_is_reduced_before_it_is_cut(train, seen_by_vae):
    large = {"crop": True, "resolution_type": "pixel", "resolution": 32}
    train.with_edits({"cache_dir": "whole"}, **large)
    train.with_edits({"cache_dir": "reduced"}, **large, maximum_image_size=48, target_downsample_size=48)
    (_, whole), (_, reduced) = seen_by_vae
    with Image.open(train.folder / "edits" / "0000.png") as image:
        half = image.resize((72, 48), Image.Resampling.LANCZOS).crop((20, 8, 52, 40))
    expected = torch.from_numpy(to_pixels(half))
    assert any(np.allclose(pixels, expected) for pixels in reduced)
    assert not any(np.allclose(pixels, expected) for pixels in whole)


# the model


@pytest.fixture(scope="module")
def model(train):
    """Return a copy of the built-in random checkpoint, and a run on it."""
    from difftrain_flux.model_files.tiny_random import ensure_tiny_random

    folder = ensure_tiny_random(train.folder / "a-model")
    return folder, train.with_edits({"pretrained_model_name_or_path": folder})


def changed_model(folder, part):
    """Return a copy of a model in which one part has other weights."""
    model = folder.with_name(f"other-{part}")
    shutil.copytree(folder, model)
    weights = model / part / "model.safetensors"
    weights = weights if weights.exists() else model / part / "diffusion_pytorch_model.safetensors"
    save_file({key: 1.1 * tensor for key, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    return model


@pytest.mark.parametrize(
    ("part", "captions", "images"), [("text_encoder", 5, 0), ("text_encoder_2", 5, 0), ("vae", 0, 4)]
)
def test_another_models_encodings_are_never_taken_for_this_ones(train, model, part, captions, images):
    folder, before = model
    run = train.with_edits({"pretrained_model_name_or_path": changed_model(folder, part)})
    assert (encoded(run, "captions"), encoded(run, "images")) == (captions, images)
    ((fed,), (other,)) = (before.fed, run.fed)
    assert fed.batch.keys == other.batch.keys
    texts = [fed.batch.text[name].equal(other.batch.text[name]) for name in ("prompt_embeds", "pooled_prompt_embeds")]
    assert texts == [part != "text_encoder_2", part != "text_encoder"]
    assert fed.batch.latents.equal(other.batch.latents) == (part != "vae")


def test_another_denoiser_needs_nothing_new(train, model):
    folder, before = model
    run = train.with_edits({"pretrained_model_name_or_path": changed_model(folder, "transformer")})
    assert run.results[0].loss != before.results[0].loss
    assert "caches: complete, nothing to encode" in run.ended.err


# the encoder's options


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"vae_dtype": "bf16"}, torch.bfloat16),
        ({"mixed_precision": "bf16"}, torch.bfloat16),
        ({"mixed_precision": "bf16", "vae_dtype": "fp32"}, torch.float32),
    ],
)
def test_vae_dtype_is_what_images_are_encoded_in(train, seen_by_vae, options, dtype):
    train.with_edits({"cache_dir": "-".join(["dtype", *options]), **options})
    assert {encoder.vae.dtype for encoder, _ in seen_by_vae} == {dtype}


@pytest.mark.parametrize("precision", ["int8-quanto", "int8-matmul", "fp8-torchao", "nf4-bnb"])
@pytest.mark.parametrize(("number", "changed"), [(1, "pooled_prompt_embeds"), (2, "prompt_embeds")])
def test_a_text_encoders_precision_changes_what_it_encodes(train, precision, number, changed):
    pytest.importorskip({"fp8-torchao": "torchao", "nf4-bnb": "bitsandbytes"}.get(precision, "torch"))
    asked = {f"text_encoder_{number}_precision": precision}
    plain, run = train.with_datasets(EDITS), train.with_datasets(EDITS, **asked)
    assert encoded(run, "captions") == 5
    assert encoded(run, "images") == 0
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        ours, true = (each.fed[0].batch.text[name].float() for each in (run, plain))
        error = ((ours - true).norm() / true.norm()).item()
        assert 0 < error < 0.35 if name == changed else error == 0
        assert run.fed[0].batch.text[name].dtype == plain.fed[0].batch.text[name].dtype
    again = train.with_datasets(EDITS, **asked, learning_rate=0.0123)
    assert encoded(again, "captions") == 0


def test_latents_of_another_dtype_are_encoded_again(train):
    train.with_edits()
    assert encoded(train.with_edits({"vae_dtype": "bf16"}), "images") == 4


@pytest.mark.parametrize(("size", "batches"), [(1, [1, 1, 1, 1]), (3, [3, 1])])
def test_vae_batch_size_is_how_many_images_are_encoded_at_once(train, seen_by_vae, size, batches):
    train.with_edits({"vae_batch_size": size, "cache_dir": f"batches-{size}"})
    assert [len(pixels) for _, pixels in seen_by_vae] == batches


def test_tiling_and_slicing_reach_the_vae_and_only_tiles_are_other_latents(train, seen_by_vae):
    train.with_edits()
    seen_by_vae.clear()
    assert encoded(train.with_edits({"vae_enable_slicing": "true"}), "images") == 0
    tiled = train.with_edits({"vae_enable_tiling": "true", "vae_enable_slicing": "true"})
    assert encoded(tiled, "images") == 4
    assert {(encoder.vae.use_tiling, encoder.vae.use_slicing) for encoder, _ in seen_by_vae} == {(True, True)}


# folders


def entries(folder):
    return len(list(folder.rglob("*.safetensors")))


def test_caches_lie_where_the_config_says(train):
    text = {"id": "texts", "dataset_type": "text_embeds", "cache_dir": "own-texts"}
    run = train.with_datasets({**EDITS, "cache_dir_vae": "own-latents"}, text, cache_dir="own-cache")
    assert entries(run.folder / "own-latents") == 4
    assert entries(run.folder / "own-texts") == 5
    assert entries(run.folder / "own-cache") == 0
    blur = {"type": "superresolution", "captions": "sharpen"}
    run = train.with_edits({"cache_dir": "own-cache"}, conditioning=blur)
    assert entries(run.folder / "own-cache" / "vae" / "edits") == 8
    assert entries(run.folder / "own-cache" / "text") == 2
    assert len(list((run.folder / "own-cache" / "made").rglob("*.png"))) == 4
    run = train.with_edits(conditioning={**blur, "instance_data_dir": "own-made"})
    assert len(list((run.folder / "own-made").rglob("*.png"))) == 4


def test_of_two_text_embeds_entries_the_default_is_used(train):
    texts = [{"id": name, "dataset_type": "text_embeds", "cache_dir": name} for name in ("first", "second")]
    run = train.with_datasets(EDITS, texts[0], {**texts[1], "default": True})
    assert (entries(run.folder / "first"), entries(run.folder / "second")) == (0, 5)


def test_a_generators_seed_and_options_make_other_images(train):
    noisy = {"type": "superresolution", "captions": "clean", "blur_radius": 1, "noise_level": 0.1}
    runs = [train.with_edits(conditioning={**noisy, **more}) for more in ({}, {"seed": 1}, {"blur_radius": 2})]
    shown = [run.fed[0].batch.references[0].sum().item() for run in runs]
    assert len(set(shown)) == 3


def test_a_family_whose_text_encoder_sees_references_has_an_entry_for_each_reference(train, monkeypatch):
    from difftrain_flux.family import FluxFamily
    from difftrain_flux.text import FluxTextEncoder

    seen = []
    encode = FluxTextEncoder.encode

    def watched(encoder, captions, references=None):
        seen.extend(zip(captions, references or [[]] * len(captions), strict=True))
        return encode(encoder, captions)

    monkeypatch.setattr(FluxFamily, "text_sees_references", True)
    monkeypatch.setattr(FluxTextEncoder, "encode", watched)
    blur = {"type": "superresolution", "captions": "sharpen"}
    run = train.with_edits({"cache_dir": "seeing"}, conditioning=blur)
    # the caption with each of four images, and the empty one alone
    assert encoded(run, "captions") == len(seen) == 5
    counts = [(caption, len(images)) for caption, images in seen]
    assert sorted(counts) == [("", 0), *[("sharpen", 1)] * 4]
    assert len({images[0].tobytes() for _, images in seen if images}) == 4
