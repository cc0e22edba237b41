"""`difftrain export`: a trained run as a file of every layout, checked before it has its name."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxKontextPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import EditPairs, run_in
from difftrain.exporting import merge as merging
from difftrain.exporting import prediction, room, write_export
from difftrain.model.adapter_files.layouts import FORMATS, tensors_of
from difftrain.model.load_denoiser import load_denoiser
from difftrain.model.low_rank.lora import Lora
from difftrain.model.low_rank.lora_file import ADAPTER_FILE
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.model.whole_model import write_model
from difftrain_flux.built_in import tiny_random_folder

RUNS = {
    "alpha 8": {"lora_alpha": "8", "flux_lora_target": "all+ffs"},
    "attention only": {},
    "dora": {"use_dora": "true"},
    "lokr": {"lora_type": "lycoris"},
    "dropout": {"lora_dropout": "0.9", "learning_rate": "0.01"},
    "full": {"lora_type": "lycoris", "lycoris_config": "full.json", "learning_rate": "0.01"},
}
FULL = {"algo": "full", "multiplier": 0.5, "apply_preset": {"target_module": ["Attention"]}}
"""A lycoris_config whose changes are also of biases."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that gives the output folder of a run of two steps, trained once, and its parent."""
    root = tmp_path_factory.mktemp("export")
    pairs = EditPairs(root)
    listed = pairs()
    (root / "full.json").write_text(json.dumps(FULL))

    def run(case):
        folder = root / case.replace(" ", "-")
        if not folder.exists():
            flags = {**RUNS[case], "max_train_steps": "2"}
            flags |= {"data_backend_config": listed.name, "output_dir": folder.name}
            given = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True))
            given |= {f"--{key}": value for key, value in flags.items()}
            ended = run_in(root, *(f"{key}={value}" for key, value in given.items()))
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


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Let the model count as a large one in bfloat16; return a function that says what memory is free."""
    monkeypatch.setattr(room, "LARGEST_EXACT", 0)
    monkeypatch.setattr(prediction, "compute_dtype", lambda _: "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    return lambda gib: (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {gib << 20} kB\n")


@pytest.mark.parametrize(
    ("case", "layout"), [("alpha 8", "diffusers"), ("alpha 8", "comfyui"), ("dora", "diffusers"), ("lokr", "comfyui")]
)
def test_a_large_model_is_loaded_once_in_the_format_of_its_training(runs, case, layout, large, tmp_path, monkeypatch):
    large(8)
    loaded = []

    def load(*given, **named):
        loaded.append(load_denoiser(*given, **named))
        return loaded[-1]

    monkeypatch.setattr(prediction, "load_denoiser", load)
    ended = export(runs(case), tmp_path / "a.safetensors", "--format", layout)
    assert ended.status == 0, ended.err
    assert "GiB on cpu (--no_verify leaves this out)" in ended.err
    assert "verify: prediction with the file through" in ended.err
    assert [model.proj_out.weight.dtype for model in loaded] == [torch.bfloat16]


def test_a_wrong_file_for_a_large_model_is_found(runs, large, tmp_path, monkeypatch):
    large(8)
    monkeypatch.setattr(write_export, "worst_difference", lambda *_: SimpleNamespace(module="", difference=0.0))
    monkeypatch.setattr(
        write_export,
        "tensors_of",
        lambda changes, *rest: tensors_of({name: replace(one, up=one.up * 40) for name, one in changes.items()}, *rest),
    )
    ended = export(runs("alpha 8"), tmp_path / "a.safetensors")
    assert ended.status == 2
    assert "its prediction differs by" in ended.err


def test_without_memory_for_a_large_model_only_the_layers_are_compared(runs, large, tmp_path):
    large(1)
    ended = export(runs("alpha 8"), tmp_path / "a.safetensors")
    assert ended.status == 0, ended.err
    assert "which need 3.0 GiB of memory; free are 1.0 GiB on the host" in ended.err
    assert "verify: prediction with" not in ended.err
    (tmp_path / "meminfo").unlink()
    assert "an unknown amount on the host" in export(runs("alpha 8"), tmp_path / "b.safetensors").err


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


def test_a_runs_folder_is_identified_with_its_flavour_and_what_a_header_says_stays(runs, tmp_path):
    said = run_in(runs("dora").parent, "identify", "dora").out
    assert "a DoRA of rank 4" in said
    assert "flavour    kontext" in said
    tensors = load_file(runs("alpha 8") / "pytorch_lora_weights.safetensors")
    texts = {"modelspec.architecture": "flux.1-kontext-dev/lora", "ss_train_data_dir": "/home/somebody"}
    texts["modelspec.hash_sha256"] = "of another file"
    save_file(tensors, tmp_path / "a.safetensors", metadata=texts)
    assert run_in(tmp_path, "export", "a.safetensors", "--format", "kohya", "--output", "k.safetensors").status == 0
    with safe_open(tmp_path / "k.safetensors", framework="pt") as file:
        kept = file.metadata()
    assert kept.pop("modelspec.hash_sha256").startswith("0x")
    assert kept == {"modelspec.architecture": "flux.1-kontext-dev/lora"}
    assert "flavour    kontext" in run_in(tmp_path, "identify", "k.safetensors").out


def test_the_facts_of_a_run_and_its_base_precision_stay_in_the_header(runs, tmp_path):
    tensors, texts = load_file(runs("lokr") / "pytorch_lora_weights.safetensors"), {"trained_with": "difftrain"}
    texts |= {"modelspec.architecture": "a/lokr", "base_model_precision": "int8-quanto"}
    save_file(tensors, tmp_path / "a.safetensors", metadata=texts)
    ended = run_in(tmp_path, "export", "a.safetensors", "--as_lora", 2, "--output", "b.safetensors")
    assert "trained on int8-quanto weights" in ended.err
    said = run_in(tmp_path, "identify", "b.safetensors").out
    assert "trained by difftrain" in said
    assert "precision  int8-quanto" in said
    assert "made for   architecture a/lora" in said


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


def test_nothing_is_dropped_when_predictions_are_compared(runs, tmp_path):
    ended = export(runs("dropout"), tmp_path / "a.safetensors")
    assert ended.status == 0, ended.err
    assert "verify: prediction with the file" in ended.err


def test_full_changes_with_their_biases_are_written_for_comfyui_merged_and_reduced(runs, tmp_path):
    trained = load_file(runs("full") / ADAPTER_FILE)
    biases = {name for name in trained if name.endswith(".diff_b")}
    assert biases
    assert all(trained[name].any() for name in biases)
    ended = export(runs("full"), tmp_path / "a.safetensors", "--format", "comfyui")
    assert ended.status == 0, ended.err
    assert biases <= load_file(tmp_path / "a.safetensors").keys()
    ended = export(runs("full"), tmp_path / "b.safetensors", "--as_lora", 4)
    assert ended.status == 0, ended.err
    assert f"note: {len(biases)} trained biases are no part of a LoRA: " in ended.err
    ended = export(runs("full"), tmp_path / "model", "--merge")
    assert ended.status == 0, ended.err
    merged = load_file(next((tmp_path / "model" / "transformer").glob("*.safetensors")))
    plain = FluxKontextPipeline.from_pretrained(tiny_random_folder()).transformer.state_dict()
    flat = {f"lycoris_{name.removesuffix('.bias').replace('.', '_')}.diff_b": name for name in plain}
    for name in biases:
        bias = flat[name]
        torch.testing.assert_close(merged[bias], plain[bias] + trained[name].float())


@pytest.mark.parametrize("lost", ["comfyui", "merged"])
def test_a_lost_bias_is_found(runs, lost, tmp_path, monkeypatch):
    if lost == "merged":
        monkeypatch.setattr(merging, "bias_of", lambda change: None)
        ended = export(runs("full"), tmp_path / "model", "--merge")
    else:

        def without_biases(*given):
            tensors, header = tensors_of(*given)
            return {name: tensor for name, tensor in tensors.items() if not name.endswith(".diff_b")}, header

        monkeypatch.setattr(write_export, "tensors_of", without_biases)
        ended = export(runs("full"), tmp_path / "a.safetensors", "--format", "comfyui")
    assert ended.status == 2
    assert "is wrong and was removed" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_bias_beside_a_lora_is_not_silently_left_out(runs, tmp_path):
    tensors = load_file(runs("alpha 8") / ADAPTER_FILE)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name.replace("lora_B.weight", "diff_b")] = torch.ones(len(tensors[name]))
    save_file(tensors, tmp_path / "a.safetensors")
    ended = run_in(tmp_path, "export", "a.safetensors", "--output", "b.safetensors")
    assert ended.status == 2
    assert "has a change of its bias (diff_b)" in ended.err


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


def test_a_run_whose_optimizer_saves_other_weights_than_it_trains_is_compared_with_its_file(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs("alpha 8"), folder)
    weights = max(folder.glob("checkpoint-*")) / "resume" / "adapter.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
    ended = export(folder, tmp_path / "a.safetensors")
    assert ended.status == 0, ended.err
    assert "load_lora_weights" in ended.err


def test_the_prediction_is_compared_with_the_weights_as_they_were_trained(runs, tmp_path, monkeypatch):
    # a strength that the saved file lacks would be in every file made of it
    folder = tmp_path / "run"
    shutil.copytree(runs("alpha 8"), folder)
    monkeypatch.setattr(Lora, "write", lambda *given: write_without_alpha(*given))
    checkpoint = max(folder.glob("checkpoint-*"))
    lora = Lora(lora_rank=4, lora_alpha=8)
    for place in (folder, checkpoint):
        lora.write(load_file(checkpoint / "resume" / "adapter.safetensors"), place, "transformer")
    ended = export(folder, tmp_path / "a.safetensors", "--format", "comfyui")
    assert ended.status == 2
    assert "its prediction differs by" in ended.err


def write_without_alpha(lora, weights, folder, prefix):
    save_file({f"{prefix}.{name}": tensor for name, tensor in weights.items()}, folder / ADAPTER_FILE)


@pytest.mark.parametrize("flags", [("--format", "kohya", "--output", "b.safetensors"), ("--merge", "--output", "b")])
def test_an_adapter_of_another_model_than_the_named_one_is_an_error(flags, tmp_path):
    name = "transformer.transformer_blocks.9.attn.to_q.lora_{}.weight"
    save_file({name.format("A"): torch.ones(2, 8), name.format("B"): torch.ones(8, 2)}, tmp_path / "a.safetensors")
    named = ("--model", "flux", "--flavour", "kontext", "--pretrained_model_name_or_path", "tiny-random")
    ended = run_in(tmp_path, "export", "a.safetensors", *flags, *named)
    assert ended.status == 2
    assert "transformer_blocks.9.attn.to_q [8, 8], and the model has no such layer" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


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


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_a_lokr_becomes_a_lora_that_the_stock_pipeline_loads(runs, rank, tmp_path):
    ended = export(runs("lokr"), tmp_path / "a.safetensors", "--as_lora", rank)
    assert ended.status == 0, ended.err
    assert "load_lora_weights" in ended.err
    errors = [float(line.split()[0]) for line in ended.out.splitlines()]
    assert errors[:-1] == sorted(errors[:-1], reverse=True)
    assert errors[-1] == pytest.approx(sum(errors[:-1]) / len(errors[:-1]), abs=1e-3)
    assert (errors[0] == 0) == (rank == 64)


@pytest.mark.parametrize("case", ["alpha 8", "dora", "lokr"])
def test_a_merged_model_predicts_the_same_and_loads_in_the_stock_pipeline(runs, case, tmp_path, monkeypatch):
    monkeypatch.setattr(write_model, "SHARD_BYTES", 400_000)
    ended = export(runs(case), tmp_path / "model", "--merge")
    assert ended.status == 0, ended.err
    assert "verify: prediction of the merged model: worst difference" in ended.err
    pipeline = FluxKontextPipeline.from_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model" / "transformer").glob("*.safetensors"))) > 1
    plain = FluxKontextPipeline.from_pretrained(tiny_random_folder()).transformer.state_dict()
    for file in (tmp_path / "model" / "transformer").glob("*.safetensors"):
        texts = read_header(file).texts
        assert texts["modelspec.architecture"] == "flux-1-kontext-dev"  # of a model, no longer of an adapter
        assert texts["modelspec.title"].endswith(", merged")
        assert texts["training.steps"] == "2"
        assert not {"training.rank", "training.alpha"} & texts.keys()
    moved = [name for name, tensor in pipeline.transformer.state_dict().items() if not torch.equal(tensor, plain[name])]
    assert moved
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("case", ["alpha 8", "lokr"])
def test_a_model_merged_in_16_bits_differs_by_their_rounding_alone(runs, case, tmp_path):
    ended = export(runs(case), tmp_path / "model", "--merge", "--dtype", "bf16")
    assert ended.status == 0, ended.err
    tensors = load_file(tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_wrong_merged_model_never_has_its_name(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "changed_weight", lambda weight, change: weight)
    ended = export(runs("alpha 8"), tmp_path / "model", "--merge")
    assert ended.status == 2
    assert "is wrong and was removed" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free", [1, 8])
def test_the_weights_of_a_large_merged_model_are_read_back_one_by_one(runs, large, free, tmp_path):
    large(free)
    ended = export(runs("dora"), tmp_path / "model", "--merge")
    assert ended.status == 0, ended.err
    said = re.search(r"verify: weights read back: (\d+) are base \+ change .*, (\d+) are the base model's", ended.err)
    adapted = len(load_file(runs("dora") / ADAPTER_FILE)) // 3
    assert int(said[1]) == adapted
    assert int(said[1]) + int(said[2]) == len(load_file(next((tmp_path / "model/transformer").glob("*.safetensors"))))
    assert ("prediction of the merged model" in ended.err) == (free == 8)
    assert ("free are 1.0 GiB on the host" in ended.err) == (free == 1)


WRONG_WEIGHTS = {
    "changed": ("x_embedder.weight", lambda weight: weight + 1e-6, "x_embedder.weight has changed"),
    "unchanged": ("transformer_blocks.0.attn.to_q.weight", lambda weight: None, "to_q.weight is off by"),
    "lost": ("x_embedder.bias", None, "x_embedder.bias is missing"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_a_merged_model_with_one_wrong_weight_is_found_without_a_prediction(runs, large, case, tmp_path, monkeypatch):
    name, change, said = WRONG_WEIGHTS[case]
    large(1)
    base = dict(FluxKontextPipeline.from_pretrained(tiny_random_folder()).transformer.state_dict())

    def wrong(weights, folder, texts):
        pairs = [
            (key, weight if key != name else base[name] if (other := change(weight)) is None else other)
            for key, weight in weights
            if key != name or change
        ]
        write_model.write_shards(iter(pairs), folder, texts)

    monkeypatch.setattr(merging, "write_shards", wrong)
    ended = export(runs("alpha 8"), tmp_path / "model", "--merge")
    assert ended.status == 2
    assert "is wrong and was removed" in ended.err
    assert said in ended.err
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_file_alone_does_not_say_what_to_merge_it_into(runs, tmp_path):
    assert export(runs("alpha 8"), tmp_path / "k.safetensors", "--format", "kohya").status == 0
    ended = run_in(tmp_path, "export", "k.safetensors", "--merge", "--output", "model")
    assert ended.status == 2
    assert "does not say which model it was trained on" in ended.err
    named = ("--model", "flux", "--flavour", "kontext", "--pretrained_model_name_or_path", "tiny-random")
    ended = run_in(tmp_path, "export", "k.safetensors", "--merge", "--output", "model", *named)
    assert ended.status == 0, ended.err
    assert (tmp_path / "model" / "model_index.json").is_file()


def test_a_missing_run_and_wrong_flags_are_told_together(command):
    ended = command("export", "nowhere", "--format", "foo", "--as_lora", "0")
    assert ended.status == 2
    for problem in ("nowhere does not exist", "--format 'foo'", "--as_lora '0'", "--output is missing"):
        assert problem in ended.err
