"""Runs of the installed command: LoRA on the demo's pairs, resuming, validation, several references."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from safetensors.torch import load_file

from difftrain.testing import make_dataset, run_command

ADAPTER = "pytorch_lora_weights.safetensors"
SMALL = {
    "model": "qwen-image-edit", "lora_rank": 4, "train_batch_size": 2, "validation_num_inference_steps": 2,
    "num_eval_images": 1, "validation_num_seeds": 1, "learning_rate": 1e-3, "lr_warmup_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder where the runs of this module share their caches."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=["edit", "edit-2509"])
def demo(request, checkpoints, folder):
    """Run the demo's pairs; return how the command ended."""
    name = request.param
    model = {"flavour": name, "pretrained_model_name_or_path": checkpoints[name]}

    def run(output: str, *, status: int = 0, **options: object):
        given = {**SMALL, **model, "validation_on_startup": False, "validation_steps": 4, **options}
        ended = run_command(folder, "--demo", **given, output_dir=f"{name}/{output}", cache_dir="cache")
        assert ended.status == status, ended.err
        return ended

    run.outputs = folder / name
    return run


def test_a_run_on_the_demos_pairs_resumes_bit_equal_and_draws_its_validation(demo):
    demo("whole", max_train_steps=4, checkpoint_step_interval=2)
    whole, resumed = demo.outputs / "whole", demo.outputs / "resumed"
    ended = demo("resumed", max_train_steps=4, resume_from_checkpoint=whole / "checkpoint-2")
    assert "checkpoint-2 at step 2" in ended.err
    assert (whole / ADAPTER).read_bytes() == (resumed / ADAPTER).read_bytes()
    weights = load_file(whole / ADAPTER)
    assert "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight" in weights
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
    (drawn,) = (path for path in (whole / "validation" / "step-000004").glob("*.png") if path.stem != "sheet")
    assert Image.open(drawn).size == (128, 128)
    assert drawn.read_bytes() == (resumed / "validation" / "step-000004" / drawn.name).read_bytes()
    refused = demo("whole", max_train_steps=5, qwen_lora_target="attention+ffs", status=2)
    assert "qwen_lora_target" in refused.err
    assert any("psnr" in line for line in (whole / "metrics.jsonl").read_text().splitlines())


def test_two_references_and_texts_of_two_lengths_with_dropouts_make_a_run(checkpoints, tmp_path):
    pairs, more = (make_dataset(tmp_path / name, count=4, seed=seed) for name, seed in (("one", 1), ("two", 2)))
    for number, text in enumerate(("short", "a much longer instruction")):
        (pairs.edits / f"{number:03}.txt").write_text(text)
    edits, first, second = pairs.entries(reference_sets=2, resolution=64)
    second["instance_data_dir"] = str(more.references)
    (tmp_path / "datasets.json").write_text(json.dumps([edits, first, second]))
    ended = run_command(
        tmp_path, **SMALL, flavour="edit-2509", pretrained_model_name_or_path=checkpoints["edit-2509"],
        data_backend_config="datasets.json", output_dir="output", aspect_bucket_alignment=16, max_train_steps=6,
        conditioning_multidataset_sampling="combined", caption_dropout_probability=0.3, mixed_precision="no",
        reference_dropout_probability=0.3, qwen_lora_target="attention+ffs", validation_steps=6,
        validation_resolution=64, validation_prompt="no image is like another",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    names = load_file(tmp_path / "output" / ADAPTER)
    assert any(".img_mlp." in name for name in names)
    assert any(".txt_mlp." in name for name in names)
    assert len(list((tmp_path / "output" / "validation").rglob("*.png"))) == 3


def test_an_adapter_loads_in_the_stock_pipeline(demo):
    from tiny_checkpoint import make_pipeline

    demo("exported", max_train_steps=1, validation_steps=0)
    pipeline = make_pipeline()
    pipeline.load_lora_weights(demo.outputs / "exported" / ADAPTER)
    assert pipeline.get_active_adapters() == ["default_0"]
