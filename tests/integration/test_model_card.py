"""The model card beside a finished adapter: what it says, what it does not say, and that its code works."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from long_runs import changed

from conftest import new_image, run_in
from difftrain_flux.built_in import tiny_random_folder
from difftrain_flux.model_files.tiny_random import ensure_tiny_random

ADAPTER = "pytorch_lora_weights.safetensors"
PRIVATE = ("secret", "hf_token", "instruction-of-a-photo", "somebody", "references", "0000")
"""Parts of paths, of names of sets and images, of captions and of tokens that the run below contains."""


@pytest.fixture
def arguments(edit_pairs, monkeypatch):
    """A run with validation images, two of the data and one of its own prompt; most free texts are private."""
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    datasets = edit_pairs(
        count=3,
        sizes=[(96, 64)],
        conditioning_type="reference_loose",
        id="secret-set",
        instance_prompt='"zwx" style: warm',
        prepend_instance_prompt=True,
    )
    for caption in (edit_pairs.folder / "edits").glob("*.txt"):
        caption.write_text("instruction-of-a-photo of somebody")
    return changed(
        (*edit_pairs.kontext, "--data_backend_config", str(datasets), "--max_train_steps", "2"),
        output_dir="secret-output", cache_dir="secret-cache", tracker_run_name="secret",
        validation_prompt="make it zwx",
        validation_negative_prompt="secret", validation_steps=2, num_eval_images=2, validation_num_inference_steps=1,
        validation_resolution=64, validation_num_seeds=2, lora_alpha=8, learning_rate=2e-3,
    )  # fmt: skip


@pytest.fixture
def finish(edit_pairs, arguments):
    """Run with more options; return the output folder."""

    def run(**options):
        ended = run_in(edit_pairs.folder, *changed(arguments, **options))
        assert ended.status == 0, ended.err
        return edit_pairs.folder / "secret-output"

    return run


def test_the_card_describes_model_training_data_and_results(finish):
    output = finish(base_model_precision="int8-quanto")
    text = (output / "README.md").read_text()
    for expected in (
        "A LoRA that edits images with `tiny-random`. It was trained for 2 steps",
        'Trigger words: `"zwx" style: warm`.',
        "trained on int8-quanto weights: works best on a base model in int8-quanto",
        "| lora_rank | 4 |",
        "| lora_alpha | 8 |",
        "| learning_rate | 0.002 |",
        "| optimizer | adamw_bf16 |",
        "- 3 training samples\n",
        "- target images, by size in pixels: 64x64 (3)",
        "- reference images, by size in pixels: 80x48 (3)",
        "Drawn by the validation at step 2",
    ):
        assert expected in text, text
    assert re.search(r"- loss on the same 3 samples and noise: \d", text)
    assert re.search(r"- PSNR to the target, mean of 2 training images x 2 seeds: at step 2 \d", text)


def test_nothing_private_is_on_the_card_or_in_the_names_of_its_images(finish, edit_pairs):
    model = shutil.copytree(ensure_tiny_random(tiny_random_folder()), edit_pairs.folder / "secret-model")
    output = finish(pretrained_model_name_or_path=model)
    text = (output / "README.md").read_text()
    assert [word for word in PRIVATE if word in text] == []
    assert "(https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev), from a local copy of its weights." in text
    assert 'base_model: "black-forest-labs/FLUX.1-Kontext-dev"' in text
    assert sorted(path.name for path in (output / "model-card").iterdir()) == ["1.png", "2.png", "3.png"]


def test_the_hub_reads_the_front_matter(finish):
    facts = ModelCard((finish(hub_model_id="me/warm") / "README.md").read_text()).data.to_dict()
    assert facts["library_name"] == "diffusers"
    assert facts["pipeline_tag"] == "image-to-image"
    assert facts["tags"] == ["lora", "image-to-image", "diffusers", "difftrain"]
    assert facts["instance_prompt"] == '"zwx" style: warm'
    assert facts["widget"] == [{"text": "make it zwx", "output": {"url": "model-card/1.png"}}]
    assert "base_model" not in facts  # a built-in model is on no hub


def test_the_image_of_the_configs_own_prompt_comes_first_and_instructions_of_the_data_are_not_shown(finish):
    output = finish()
    shown = re.findall(r"!\[(.*?)\]\((.*?)\)", (output / "README.md").read_text())
    assert shown == [
        ("make it zwx", "model-card/1.png"),
        ("result", "model-card/2.png"),
        ("result", "model-card/3.png"),
    ]
    own = next((output / "validation" / "step-000002").glob("*validation*.png"), None)
    assert own is None or own.read_bytes() == (output / "model-card" / "1.png").read_bytes()


def test_its_code_draws_an_image_with_the_adapter(finish, monkeypatch):
    output = finish()
    code = re.search(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)[1]
    for ours, here in (
        ('"tiny-random"', repr(str(tiny_random_folder()))),
        ('"cuda"', '"cpu"'),
    ):
        assert code.count(ours) == 1
        code = code.replace(ours, here)
    monkeypatch.chdir(output)
    new_image(output / "input.png", (64, 64), seed=5)
    found = {}
    exec(code, found)
    assert (output / "output.png").is_file()
    assert found["pipeline"].get_active_adapters() != []


def test_a_lycoris_file_gets_no_code_that_cannot_load_it(finish, edit_pairs):
    config = edit_pairs.folder / "lokr.json"
    config.write_text(json.dumps({"algo": "lokr", "linear_dim": 4, "factor": 4}))
    output = finish(lora_type="lycoris", lycoris_config=config)
    text = (output / "README.md").read_text()
    assert "load_lora_weights" not in text
    assert "The file has LyCORIS names, which ComfyUI loads." in text


def test_images_can_be_left_out(finish):
    output = finish(model_card_images="false")
    assert "![" not in (output / "README.md").read_text()
    assert not (output / "model-card").exists()


def test_a_page_of_the_users_own_stays(finish, edit_pairs):
    page = edit_pairs.folder / "secret-output" / "README.md"
    page.parent.mkdir()
    page.write_text("mine")
    finish()
    assert page.read_text() == "mine"


def test_starting_over_keeps_the_earlier_card_with_its_adapter(finish):
    output = finish()
    before = (output / "README.md").read_text()
    finish(resume_from_checkpoint="none", max_train_steps=1)
    assert (output / "previous-1" / "README.md").read_text() == before
    assert (output / "previous-1" / "model-card" / "1.png").is_file()
    assert "trained for 1 steps" in (output / "README.md").read_text()
