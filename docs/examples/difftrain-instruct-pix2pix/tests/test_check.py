"""Tests that `difftrain check` reports models and settings that cannot work, before any weight is loaded."""

from __future__ import annotations

import json
import shutil

import pytest

from difftrain.testing import make_dataset, run_command


@pytest.fixture
def model(checkpoint, tmp_path):
    """Return a copy of the checkpoint that may be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture
def check(tmp_path):
    """Check a model on four pairs; return the messages."""
    folders = make_dataset(tmp_path / "pairs")

    def run(model, *, status=2, reference=None, reference_sets=1, **options):
        edits, *references = folders.entries(reference_sets=reference_sets, resolution=64)
        (tmp_path / "datasets.json").write_text(json.dumps([edits, *(each | (reference or {}) for each in references)]))
        given = {"model": "instruct-pix2pix", "aspect_bucket_alignment": 8, "max_train_steps": 1}
        given |= {"data_backend_config": "datasets.json", "conditioning_multidataset_sampling": "combined", **options}
        if model is not None:
            given["pretrained_model_name_or_path"] = model
        ended = run_command(tmp_path, "check", **given)
        assert ended.status == status, ended.err
        assert "Traceback" not in ended.err
        return ended.out + ended.err

    return run


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_model_is_ready_and_recognised(check, model):
    assert "(weights of original)" in check(model, status=0)


def test_a_missing_folder(check, tmp_path):
    assert "is neither a folder in diffusers layout nor a hub id" in check(tmp_path / "nowhere")


def test_a_hub_model_that_cannot_be_reached(check):
    told = check(None)
    assert "model 'timbrooks/instruct-pix2pix': the hub cannot be reached" in told
    assert "set pretrained_model_name_or_path to a local diffusers folder" in told


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component(check, model, component):
    shutil.rmtree(model / component)
    assert f"1 of 5 parts cannot be used: {component} (no such folder)" in check(model)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_missing_and_cut_weights(check, model, component):
    (file,) = (model / component).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file} is cut short or damaged" in check(model)
    file.unlink()
    assert f"{component} (no *.safetensors)" in check(model)


def test_damaged_and_empty_configs(check, model):
    (model / "unet" / "config.json").write_text("{")
    assert "config.json is not valid JSON" in check(model)
    (model / "unet" / "config.json").write_text("{}")
    assert "unet (config.json has no in_channels, block_out_channels, cross_attention_dim)" in check(model)


def test_a_plain_text_to_image_unet(check, model):
    edit_json(model / "unet" / "config.json", in_channels=4)
    told = check(model)
    assert "has a plain text-to-image U-Net: it takes 4 channels, not 8" in told
    assert "such as timbrooks/instruct-pix2pix" in told


def test_a_unet_for_inpainting(check, model):
    edit_json(model / "unet" / "config.json", in_channels=9)
    assert "has a U-Net for another task: it takes 9 channels, not 8" in check(model)


def test_another_pipeline_of_the_same_parts(check, model):
    edit_json(model / "model_index.json", _class_name="StableDiffusionPipeline")
    assert "has the weights of no flavour of 'instruct-pix2pix' (pipeline StableDiffusionPipeline)" in check(model)
    assert "because allow_other_weights is on" in check(model, status=0, allow_other_weights="true")


def test_a_model_of_another_family(check, tmp_path):
    index = {"_class_name": "FluxPipeline", **{name: ["x", "Y"] for name in ("transformer", "vae", "scheduler")}}
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps(index))
    assert "is a FluxPipeline without unet, text_encoder, tokenizer" in check(tmp_path / "flux")


def test_a_prediction_that_cannot_be_trained(check, model):
    edit_json(model / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "prediction_type 'sample' is neither epsilon nor v_prediction" in check(model)


def test_a_wrong_alignment(check, model):
    told = check(model, aspect_bucket_alignment=4)
    assert "aspect_bucket_alignment must be a multiple of 8 for model_family 'instruct-pix2pix', got 4" in told


def test_references_of_another_size(check, model):
    told = check(model, reference={"conditioning_type": "reference_loose", "resolution": 128})
    assert "4 of 4 references in 'references' do not fit: 000 would be encoded at" in told
    assert 'use "conditioning_type": "reference_strict"' in told
    assert "reference_loose" not in told


def test_images_without_references(check, model):
    told = check(model, reference_sets=0)
    assert (
        "dataset 'edits': has no references, but flavour 'original' of 'instruct-pix2pix' needs one for every image"
        in told
    )
    assert "name a reference set in conditioning_data" in told


def test_too_many_references(check, model):
    assert "combines 2 references per sample, but flavour 'original'" in check(model, reference_sets=2)


def test_a_guidance_that_the_model_has_no_input_for(check, model):
    assert "hint: set validation_guidance_real" in check(model, validation_guidance=3)


def test_a_mistyped_option(check, model):
    assert "pix2pix_lora_target" in check(model, pix2pix_lora_target="attentoin")
