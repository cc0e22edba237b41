"""The header of an adapter file tells what users of the file need, and nothing private."""

import json
import shutil
import struct

import pytest
from long_runs import changed
from safetensors import safe_open
from safetensors.torch import load_file

from conftest import run_in
from difftrain.publishing.file_metadata import FILE_NOTE_KEY, add_to_header

ADAPTER = "pytorch_lora_weights.safetensors"
PRIVATE = ("secret", "hf_token", "somebody", "instruction-of-a-photo", "edits", "references", "0000.png")
"""Parts of paths, of names of sets, images and people, of captions and of tokens that the run below contains."""


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.fixture
def finished(edit_pairs, monkeypatch):
    """A run whose every free text is private, but for its trigger words and the name of its repository."""
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1750000000")
    datasets = edit_pairs(count=3, instance_prompt="in the style of zwx", prepend_instance_prompt=True)
    for caption in (edit_pairs.folder / "edits").glob("*.txt"):
        caption.write_text("instruction-of-a-photo of somebody")
    library = edit_pairs.folder / "secret-prompts.json"
    library.write_text(json.dumps({"secret": "a secret prompt of somebody"}))
    options = changed(
        (*edit_pairs.kontext, "--data_backend_config", str(datasets), "--max_train_steps", "2"),
        output_dir="secret-output", cache_dir="secret-cache", hub_model_id="somebody/open-model",
        validation_prompt="a secret prompt", validation_prompt_library=library, validation_negative_prompt="secret",
        validation_steps=2, num_eval_images=1, validation_num_inference_steps=1, validation_resolution=64,
        lora_alpha=8, learning_rate=2e-3, base_model_precision="int8-quanto", tracker_run_name="secret",
    )  # fmt: skip
    ended = run_in(edit_pairs.folder, *options)
    assert ended.status == 0, ended.err
    return edit_pairs.folder / "secret-output"


def test_the_header_names_base_precision_trigger_words_and_training(finished):
    header = header_of(finished / ADAPTER)
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "open-model",
        "modelspec.architecture": "flux-1-kontext-dev/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.date": "2025-06-15",
        "modelspec.resolution": "64x64",
        "modelspec.trigger_phrase": "in the style of zwx",
        "base_model": "tiny-random",
        "base_model_precision": "int8-quanto",
        "training.steps": "2",
        "training.samples": "3",
        "training.datasets": "1",
        "training.rank": "4",
        "training.alpha": "8",
        "training.learning_rate": "0.002",
        "training.optimizer": "adamw_bf16",
    }
    assert {key: header.get(key) for key in expected} == expected
    assert "works best on a base model in int8-quanto" in header["modelspec.usage_hint"]
    settings = json.loads(header["lora_adapter_metadata"])
    assert settings["transformer.lora_alpha"] == settings["transformer.r"] == 4  # folded; diffusers reads this


def test_nothing_private_is_in_any_published_file(finished):
    for path in (finished / ADAPTER, finished / "checkpoint-2" / ADAPTER):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        text = content[8 : 8 + length].decode()
        assert [word for word in PRIVATE if word in text] == [], path


def test_more_entries_change_neither_tensors_nor_entries_that_are_there(finished):
    path = finished / ADAPTER
    before, header = load_file(path), header_of(path)
    add_to_header(path, {"base_model": "other", "new": "entry"})
    after = load_file(path)
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert header_of(path) == {**header, "new": "entry"}
    once = path.read_bytes()
    add_to_header(path, {"new": "entry"})
    assert path.read_bytes() == once
    (length,) = struct.unpack("<Q", once[:8])
    assert length % 8 == 0
    assert not list(path.parent.glob(".*partial"))


def test_an_export_keeps_what_the_header_says_but_the_hash_of_other_tensors(finished, tmp_path):
    ended = run_in(tmp_path, "export", finished, "--format", "kohya", "--output", "k.safetensors")
    assert ended.status == 0, ended.err
    assert "trained on int8-quanto weights, and works best on a base model in int8-quanto" in ended.err
    assert ended.err.count("note: it was trained on") == 1
    header, exported = header_of(finished / ADAPTER), header_of(tmp_path / "k.safetensors")
    assert exported.pop("modelspec.hash_sha256") != header["modelspec.hash_sha256"]
    dropped = {"modelspec.hash_sha256", "modelspec.implementation", "lora_adapter_metadata"}
    assert exported == {key: text for key, text in header.items() if key not in dropped}
    said = run_in(tmp_path, "identify", "k.safetensors").out
    assert "difftrain" in said


def test_a_note_on_the_matrices_is_not_kept_where_others_replace_them(finished, tmp_path):
    file = tmp_path / "a.safetensors"
    shutil.copy(finished / ADAPTER, file)
    add_to_header(file, {FILE_NOTE_KEY: "pissa of rank 2"})
    for output, flags in (("same", ()), ("less", ("--as_lora", 1))):
        ended = run_in(tmp_path, "export", file, "--output", f"{output}.safetensors", *flags)
        assert ended.status == 0, ended.err
    assert header_of(tmp_path / "same.safetensors")[FILE_NOTE_KEY] == "pissa of rank 2"
    assert FILE_NOTE_KEY not in header_of(tmp_path / "less.safetensors")
