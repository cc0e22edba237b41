"""Runs with `lora_init_type` pissa: the start is computed once, with a bar, then read from the checkpoint."""

import pytest
from safetensors.torch import load_file

from conftest import run_in
from difftrain.model.low_rank import started
from difftrain.model.low_rank.lora_file import ADAPTER_FILE

START = "pissa: find the part of each weight to begin with"


@pytest.fixture
def run(edit_pairs):
    """Return a function that trains, and its folder."""
    listed = edit_pairs()

    def start(output, steps, **more):
        flags = {"data_backend_config": listed.name, "output_dir": output, "max_train_steps": steps, **more}
        flags |= {"lora_init_type": "pissa", "checkpoint_step_interval": 2}
        ended = run_in(edit_pairs.folder, *edit_pairs.kontext, *(f"--{key}={value}" for key, value in flags.items()))
        assert ended.status == 0, ended.err
        return ended.err

    start.folder = edit_pairs.folder
    return start


def test_the_start_has_a_bar_over_its_modules(run):
    said = run("a", 1)
    modules = len(load_file(run.folder / "a" / ADAPTER_FILE)) // 2
    assert f"{START} {modules}: " in said


@pytest.mark.parametrize("fused", ["false", "true"])
def test_a_resumed_run_and_an_export_take_the_start_from_the_checkpoint(run, fused, monkeypatch):
    run("whole", 4, fuse_qkv_projections=fused)
    run("parts", 2, fuse_qkv_projections=fused)

    def computed(*_):
        raise AssertionError("the start is computed again")

    monkeypatch.setattr(started, "start_of", computed)
    said = run("parts", 4, fuse_qkv_projections=fused)
    assert f"{START}: read from the checkpoint" in said
    whole, parts = (run.folder / name / ADAPTER_FILE for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    ended = run_in(run.folder, "export", "parts", "--format", "comfyui", "--output", "a.safetensors")
    assert ended.status == 0, ended.err
    assert "verify: prediction with the file" in ended.err
