"""Tests that `difftrain check` reports models and settings that cannot work, before any weight is loaded."""

from __future__ import annotations

import json
import shutil

import pytest

from difftrain.testing import make_dataset, run_command


@pytest.fixture
def model(checkpoints, tmp_path):
    """Return a copy of the checkpoint of flavour edit that may be damaged."""
    return shutil.copytree(checkpoints["edit"], tmp_path / "model")


@pytest.fixture
def check(tmp_path):
    """Check a model of flavour edit on four pairs; return the messages."""
    folders = make_dataset(tmp_path / "pairs")

    def run(model, *command, status=2, reference_sets=1, resolution=64, **options):
        entries = folders.entries(reference_sets=reference_sets, resolution=resolution)
        (tmp_path / "datasets.json").write_text(json.dumps(entries))
        given = {"model": "qwen-image-edit", "aspect_bucket_alignment": 16, "max_train_steps": 1, "flavour": "edit"}
        given |= {"data_backend_config": "datasets.json", "conditioning_multidataset_sampling": "combined", **options}
        if model is not None:
            given["pretrained_model_name_or_path"] = model
        ended = run_command(tmp_path, "check", *command, **given)
        assert ended.status == status, ended.err
        assert "Traceback" not in ended.err
        return ended.out if command else ended.out + ended.err

    run.captions = sorted(folders.edits.glob("*.txt"))
    return run


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_model_is_ready_and_recognised(check, model):
    assert "(weights of edit)" in check(model, status=0)


def test_one_caption_is_encoded_beside_every_reference(check, model):
    for path in check.captions:
        path.write_text("sharpen it")
    told = json.loads(check(model, "--json", status=0, validation_steps=0))
    assert told["to_encode"]["captions"] == 4 + 1  # plus the empty one without a reference


def test_a_missing_folder(check, tmp_path):
    assert "is neither a folder in diffusers layout nor a hub id" in check(tmp_path / "nowhere")


def test_a_hub_model_that_cannot_be_reached(check):
    told = check(None)
    assert "model 'Qwen/Qwen-Image-Edit': the hub cannot be reached" in told
    assert "set pretrained_model_name_or_path to a local diffusers folder" in told


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "tokenizer", "processor", "scheduler"])
def test_a_missing_component(check, model, component):
    shutil.rmtree(model / component)
    assert f"1 of 6 parts cannot be used: {component} (no such folder)" in check(model)


def test_a_missing_shard(check, model):
    shard = sorted((model / "transformer").glob("*.safetensors"))[1]
    shard.unlink()
    assert f"transformer (no {shard.name})" in check(model)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_a_cut_shard(check, model, component):
    shard = sorted((model / component).glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert f"{shard} is cut short or damaged" in check(model)


def test_a_damaged_config(check, model):
    (model / "transformer" / "config.json").write_text("{")
    assert "config.json is not valid JSON" in check(model)


@pytest.mark.parametrize(("component", "key"), [("transformer", "num_layers"), ("vae", "latents_mean")])
def test_a_config_that_says_nothing(check, model, component, key):
    (model / component / "config.json").write_text("{}")
    assert f"{component} (config.json" in check(model)
    assert key in check(model)


def test_the_weights_of_the_other_flavour(check, checkpoints):
    told = check(checkpoints["edit-2509"])
    assert "has the weights of flavour 'edit-2509' (pipeline QwenImageEditPlusPipeline" in told
    assert "but model_flavour is 'edit'" in told


def test_weights_of_a_later_month(check, model):
    edit_json(model / "transformer" / "config.json", zero_cond_t=True)
    assert "has the weights of no flavour of 'qwen-image-edit'" in check(model)


def test_a_text_to_image_model(check, model):
    edit_json(model / "model_index.json", _class_name="QwenImagePipeline")
    assert "has the weights of no flavour of 'qwen-image-edit' (pipeline QwenImagePipeline" in check(model)


def test_a_model_of_another_family(check, tmp_path):
    index = {"_class_name": "FluxPipeline", **{name: ["x", "Y"] for name in ("transformer", "vae", "scheduler")}}
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps(index))
    assert "is a FluxPipeline without text_encoder, tokenizer, processor" in check(tmp_path / "flux")


def test_another_transformer(check, model):
    edit_json(model / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    assert "the transformer is a FluxTransformer2DModel, not a QwenImageTransformer2DModel" in check(model)


def test_a_wrong_alignment(check, model):
    told = check(model, aspect_bucket_alignment=8)
    assert "aspect_bucket_alignment must be a multiple of 16 for model_family 'qwen-image-edit', got 8" in told


def test_images_without_references(check, model):
    told = check(model, reference_sets=0)
    assert (
        "dataset 'edits': has no references, but flavour 'edit' of 'qwen-image-edit' needs one for every image" in told
    )
    assert "name a reference set in conditioning_data" in told


def test_too_many_references(check, model):
    assert "combines 2 references per sample, but flavour 'edit'" in check(model, reference_sets=2)


def test_too_large_references(check, model):
    told = check(model, resolution=2048)
    assert "4 of 4 images would be encoded larger than flavour 'edit' can take, 2,359,296 pixels: 000.png" in told


def test_a_mistyped_option(check, model):
    assert "qwen_lora_target" in check(model, qwen_lora_target="attentoin")
