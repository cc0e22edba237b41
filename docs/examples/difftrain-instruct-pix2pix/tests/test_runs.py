"""Runs of the installed command: LoRA on the demo's pairs, resuming, validation, the adapter elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image
from safetensors.torch import load_file

from difftrain import Batch, NoisyBatch
from difftrain.testing import run_command
from difftrain_instruct_pix2pix.family import InstructPix2Pix, Original

ADAPTER = "pytorch_lora_weights.safetensors"
SMALL = {
    "model": "instruct-pix2pix", "lora_rank": 4, "train_batch_size": 2, "validation_num_inference_steps": 2,
    "num_eval_images": 1, "validation_num_seeds": 1, "learning_rate": 1e-2, "lr_warmup_steps": 0,
    "validation_on_startup": False, "validation_steps": 4, "aspect_bucket_alignment": 8, "lora_alpha": 8,
    "reference_dropout_probability": 0.2, "caption_dropout_probability": 0.2, "mixed_precision": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(checkpoint, tmp_path_factory):
    """Train on the demo's pairs; return how the command ended."""
    folder = tmp_path_factory.mktemp("runs")

    def run(output: str, **options: object):
        given = {**SMALL, "pretrained_model_name_or_path": checkpoint, **options}
        ended = run_command(folder, "--demo", **given, output_dir=output, cache_dir="cache")
        assert ended.status == 0, ended.err
        return ended

    run.folder = folder
    run("whole", max_train_steps=4, checkpoint_step_interval=2)
    return run


def test_a_run_on_the_demos_pairs_resumes_bit_equal_and_draws_its_validation(demo):
    whole, resumed = demo.folder / "whole", demo.folder / "resumed"
    same = {"validation_guidance_real": 7.5}  # the default of the flavour
    ended = demo("resumed", max_train_steps=4, resume_from_checkpoint=whole / "checkpoint-2", **same)
    assert "checkpoint-2 at step 2" in ended.err
    assert "Loading weights" not in ended.err, "bars of the libraries"
    assert (whole / ADAPTER).read_bytes() == (resumed / ADAPTER).read_bytes()
    (drawn,) = (path for path in (whole / "validation" / "step-000004").glob("*.png") if path.stem != "sheet")
    assert min(Image.open(drawn).size) >= 64
    again = resumed / "validation" / "step-000004" / drawn.name
    assert Image.open(drawn).tobytes() == Image.open(again).tobytes()
    assert any("psnr" in line for line in (whole / "metrics.jsonl").read_text().splitlines())


def test_images_of_another_image_guidance_are_not_compared(demo):
    less = {"validation_steps": 1, "validation_on_startup": True}
    demo("guided", max_train_steps=1, **less)
    ended = demo("guided", max_train_steps=2, pix2pix_image_guidance=3, **less)
    assert "1 of 1 images of step 0 are not shown as base" in ended.out + ended.err


def test_noise_levels_are_uniform_unless_the_config_says_otherwise(demo):
    demo("uniform", max_train_steps=1, validation_steps=0, timestep_sampler="uniform")
    demo("sigmoid", max_train_steps=1, validation_steps=0, timestep_sampler="sigmoid")
    losses = {
        name: json.loads((demo.folder / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for name in ("whole", "uniform", "sigmoid")
    }
    assert losses["whole"] == losses["uniform"] != losses["sigmoid"]


def test_the_adapter_gives_the_same_prediction_in_the_stock_pipeline(demo, checkpoint):
    """Compare the file alone, in a stock pipeline, with our model from the checkpoint's raw weights."""
    from peft import LoraConfig, inject_adapter_in_model

    family, flavour = InstructPix2Pix(), Original()
    location = family.locate(str(checkpoint), flavour)
    unet = family.empty_denoiser(location)
    unet.load_state_dict(dict(family.denoiser_weights(location)), assign=True)
    targets = family.adapter_targets(unet)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=targets), unet)
    (raw,) = (demo.folder / "whole" / "checkpoint-4" / "resume").glob("*adapter*.safetensors")
    state = {name.replace(".weight", ".default.weight"): tensor for name, tensor in load_file(raw).items()}
    assert not unet.load_state_dict(state, strict=False).unexpected_keys

    generator = torch.Generator().manual_seed(1)
    noisy, reference, text = (torch.randn(1, *shape, generator=generator) for shape in ((4, 8, 8), (4, 8, 8), (77, 32)))
    timestep = torch.tensor([300])
    batch = Batch(latents=noisy, references=[reference], text={"prompt_embeds": text})
    noisy_batch = NoisyBatch(noisy=noisy, sigma=torch.tensor([0.3]), timestep=timestep, target=noisy)
    model_input = flavour.extend_input(family, family.build_input(noisy_batch, batch, unet), batch)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(checkpoint)
    sample = torch.cat([noisy, reference / pipeline.vae.config.scaling_factor], dim=1)
    with torch.no_grad():
        ours = family.predict(unet, model_input)
        base = pipeline.unet(sample, timestep, text).sample
        pipeline.load_lora_weights(demo.folder / "whole" / ADAPTER)
        theirs = pipeline.unet(sample, timestep, text).sample
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert (theirs - base).abs().max() > 1e-3


def test_the_real_command_lists_the_package_and_imports_no_torch_for_it(tmp_path):
    code = (
        "import atexit, runpy, sys; sys.argv = ['difftrain', 'plugins', '--json']\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "runpy.run_module('difftrain', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "difftrain_instruct_pix2pix.family" in result.stderr.split()
    assert not {"torch", "diffusers", "transformers"} & set(result.stderr.split())
    plugin = next(one for one in json.loads(result.stdout) if one["name"] == "instruct_pix2pix")
    assert (plugin["distribution"], plugin["status"]) == ("difftrain-instruct-pix2pix", "ok")
    assert plugin["provides"] == {"family": ["instruct-pix2pix"], "flavour": ["instruct-pix2pix/original"]}
