"""`difftrain export`: a trained run as a file of every layout, checked before it has its name."""

import pytest
import torch
from safetensors.torch import load_file

from conftest import EditPairs, run_in
from difftrain.exporting import write_export
from difftrain.model.adapter_files.layouts import FORMATS, tensors_of

RUNS = {
    "alpha 8": {"lora_alpha": "8", "flux_lora_target": "all+ffs"},
    "attention only": {},
    "dora": {"use_dora": "true"},
    "lokr": {"lora_type": "lycoris"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that gives the output folder of a run of two steps, trained once, and its parent."""
    root = tmp_path_factory.mktemp("export")
    pairs = EditPairs(root)
    listed = pairs()

    def run(case):
        folder = root / case.replace(" ", "-")
        if not folder.exists():
            flags = {**RUNS[case], "max_train_steps": "2"}
            flags |= {"data_backend_config": listed.name, "output_dir": folder.name}
            ended = run_in(root, *pairs.kontext, *(f"--{key}={value}" for key, value in flags.items()))
            assert ended.status == 0, ended.err
        return folder

    return run


def export(folder, output, *flags, source=None):
    return run_in(folder.parent, "export", source or folder.name, "--output", output, *flags)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("case", ["alpha 8", "attention only"])
def test_a_run_is_written_in_every_layout_and_predicts_the_same(runs, case, layout, tmp_path):
    folder, output = runs(case), tmp_path / "a.safetensors"
    ended = export(folder, output, "--format", layout)
    assert ended.status == 0, ended.err
    assert "verify: layer by layer, worst relative difference" in ended.err
    through = "FluxKontextPipeline.load_lora_weights" if layout == "diffusers" else "its names mapped back"
    assert f"verify: prediction with the file through {through}" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_of_another_layout_goes_back_to_diffusers_names_without_its_run(runs, tmp_path):
    folder = runs("alpha 8")
    assert export(folder, tmp_path / "k.safetensors", "--format", "kohya").status == 0
    ended = run_in(tmp_path, "export", "k.safetensors", "--output", "d.safetensors", "--dtype", "bf16")
    assert ended.status == 0, ended.err
    assert "no prediction: nothing says which model" in ended.err
    tensors = load_file(tmp_path / "d.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    own = load_file(folder / "pytorch_lora_weights.safetensors")
    assert {name for name in own if "lora_A" in name} == {name for name in tensors if "lora_A" in name}


def test_a_dora_goes_through_the_stock_pipeline(runs, tmp_path):
    ended = export(runs("dora"), tmp_path / "a.safetensors")
    assert ended.status == 0, ended.err
    assert "load_lora_weights" in ended.err


def test_a_lokr_is_written_for_comfyui_and_refused_elsewhere(runs, tmp_path):
    ended = export(runs("lokr"), tmp_path / "a.safetensors", "--format", "comfyui")
    assert ended.status == 0, ended.err
    refused = export(runs("lokr"), tmp_path / "b.safetensors", "--format", "kohya")
    assert refused.status == 2
    assert "cannot hold LoKr, only LoRA" in refused.err
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_wrong_file_never_has_its_name(runs, layout, tmp_path, monkeypatch):
    def wrong(*given):
        tensors, header = tensors_of(*given)
        name = next(name for name in tensors if "lora_B" in name or "lora_up" in name)
        return {**tensors, name: tensors[name] * 1.01}, header

    monkeypatch.setattr(write_export, "tensors_of", wrong)
    ended = export(runs("attention only"), tmp_path / "a.safetensors", "--format", layout)
    assert ended.status == 2
    assert "is wrong and was removed" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_what_the_flags_lack_is_said_together(tmp_path):
    ended = run_in(tmp_path, "export", "--format", "kohja", "--dtype", "int8")
    assert ended.status == 2
    assert "did you mean 'kohya'?" in ended.err
    assert "export needs a run's output folder" in ended.err
    assert "--dtype 'int8': known: fp32, bf16, fp16" in ended.err
    assert "--output is missing" in ended.err


def test_an_existing_file_is_kept(runs, tmp_path):
    output = tmp_path / "a.safetensors"
    output.write_bytes(b"mine")
    ended = export(runs("attention only"), output)
    assert ended.status == 2
    assert "exists already" in ended.err
    assert output.read_bytes() == b"mine"
