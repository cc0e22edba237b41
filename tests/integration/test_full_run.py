"""Runs of ``model_type full``: every weight is trained, saved as a model that diffusers loads, resumed bit-equal."""

import re
import runpy
import signal

import pytest
import torch
from long_runs import changed
from safetensors import safe_open
from safetensors.torch import load_file
from test_adapter_elsewhere import train, write_prediction
from test_interrupt import printed_command, stopping, typed

from conftest import EditPairs, run_in
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.model.whole_model import write_model
from difftrain.publishing.uploaded_files import checkpoint_files, final_files
from difftrain_flux.built_in import tiny_random_folder

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
DRAWING = {"validation_resolution": 64, "validation_num_inference_steps": 1}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = EditPairs(tmp_path_factory.mktemp("full"))
    made()
    return made


def arguments(pairs, **options):
    usual = {
        "model_type": "full", "max_train_steps": 4, "checkpoint_step_interval": 2,
        "data_backend_config": "datasets.json",
    }  # fmt: skip
    flags = changed(pairs.kontext, **usual | options)
    flags = dict(zip(flags[::2], flags[1::2], strict=True))
    del flags["--lora_rank"]
    return [part for pair in flags.items() for part in pair]


@pytest.fixture(scope="module")
def whole(pairs):
    """Return a run of four steps, with a checkpoint after two."""
    ended = run_in(pairs.folder, *arguments(pairs, output_dir="whole", gradient_accumulation_steps=2))
    assert ended.status == 0, ended.err
    return ended


def stock(folder):
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")


@pytest.fixture(scope="module")
def trained(pairs):
    """Return the folder of a run, with the prediction of the model in training for a fixed input."""
    folder = pairs.folder / "trained"
    state = train(folder, pairs, {"model_type": "full", "gradient_checkpointing": "true"})
    write_prediction(state, folder / "inputs.safetensors")
    return folder


def test_the_stock_model_predicts_with_the_files_what_the_training_predicted(trained):
    inputs = load_file(trained / "inputs.safetensors")
    expected = inputs.pop("prediction")
    with torch.no_grad():
        base, found = (
            stock(folder)(**inputs, return_dict=False)[0][:, : expected.shape[1]]
            for folder in (tiny_random_folder(), trained)
        )
    assert (found - expected).abs().max() <= 1e-5
    assert (found - base).abs().max() > 0.1


def test_every_weight_is_trained_norms_and_biases_too(whole, pairs):
    before, after = load_file(tiny_random_folder() / WEIGHTS), load_file(pairs.folder / "whole" / WEIGHTS)
    assert before.keys() == after.keys()
    # adding the same number to all keys changes no attention
    unchanged = {name for name in after if torch.equal(before[name], after[name])}
    assert unchanged == set()
    assert f"model_type full: 62 modules, {sum(part.numel() for part in after.values()):,} trained weights" in whole.err


def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(pairs, whole):
    resuming = arguments(
        pairs, output_dir="resumed", resume_from_checkpoint="whole/checkpoint-2", gradient_accumulation_steps=2
    )
    ended = run_in(pairs.folder, *resuming)
    assert ended.status == 0, ended.err
    assert "resumed whole/checkpoint-2 at step 2" in ended.err
    first, second = pairs.folder / "whole", pairs.folder / "resumed"
    for file in (WEIGHTS, "checkpoint-4/resume/adapter.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    states = [torch.load(run / "checkpoint-4/resume/optimizer.pt")["state"] for run in (first, second)]
    assert len(states[0]) == 112
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_model_and_the_printed_command_ends_with_equal_bytes(pairs, whole, number, status):
    output = pairs.folder / f"stopped-{status}"
    asked = arguments(pairs, gradient_accumulation_steps=2)
    stopped = run_in(pairs.folder, *stopping(pairs.folder, asked, output, number))
    assert stopped.status == status, stopped.err
    assert [path.name for path in output.glob("*checkpoint-*")] == ["checkpoint-2", "checkpoint-3"]
    assert stock(output / "checkpoint-3").num_parameters() == stock(pairs.folder / "whole").num_parameters()
    assert not (output / "transformer").exists()
    resumed = run_in(pairs.folder, *typed(printed_command(stopped.err)))
    assert resumed.status == 0, resumed.err
    assert (output / WEIGHTS).read_bytes() == (pairs.folder / "whole" / WEIGHTS).read_bytes()


def test_a_run_that_goes_on_replaces_its_model_and_keeps_as_many_checkpoints_as_asked(pairs):
    again = {"output_dir": "longer", "checkpoints_total_limit": 1}
    assert run_in(pairs.folder, *arguments(pairs, max_train_steps=2, **again)).status == 0
    first = (pairs.folder / "longer" / WEIGHTS).read_bytes()
    ended = run_in(pairs.folder, *arguments(pairs, max_train_steps=4, **again))
    assert ended.status == 0, ended.err
    output = pairs.folder / "longer"
    assert (output / WEIGHTS).read_bytes() == (output / "checkpoint-4" / WEIGHTS).read_bytes() != first
    assert [path.name for path in output.glob("*checkpoint-*")] == ["checkpoint-4"]
    assert not list(output.glob(".*.removing"))


def test_an_adapters_checkpoint_is_not_resumed_as_a_model(pairs, whole):
    ended = run_in(
        pairs.folder, *changed(pairs.kontext, data_backend_config="datasets.json", max_train_steps=4),
        "--output_dir", "other", "--resume_from_checkpoint", "whole/checkpoint-2",
    )  # fmt: skip
    assert ended.status == 2
    assert "model_type was full and is now lora: the checkpoint holds other weights" in ended.err


def test_weights_in_float32_are_not_rounded_when_they_are_loaded(pairs):
    """Under bfloat16 autocast, optimi-lion trains in float32: a step at a rate of almost nothing leaves them."""
    options = {"mixed_precision": "bf16", "optimizer": "optimi-lion", "learning_rate": 1e-30, "max_train_steps": 1}
    ended = run_in(pairs.folder, *arguments(pairs, output_dir="exact", checkpoint_step_interval=0, **options))
    assert ended.status == 0, ended.err
    before, after = load_file(tiny_random_folder() / WEIGHTS), load_file(pairs.folder / "exact" / WEIGHTS)
    assert all((before[name] - after[name]).abs().max() <= 1e-30 for name in before)


def test_the_folder_of_the_model_is_uploaded_and_the_state_is_not(pairs, whole):
    output = pairs.folder / "whole"
    final = final_files(output, images=True)
    assert set(final) == {"README.md", "transformer/config.json", WEIGHTS}
    of_checkpoint = checkpoint_files(output / "checkpoint-2")
    assert set(of_checkpoint) == {"checkpoint-2/transformer/config.json", f"checkpoint-2/{WEIGHTS}"}
    assert all(path.is_file() for path in (*final.values(), *of_checkpoint.values()))


def test_header_and_card_speak_of_a_model(pairs, trained):
    with safe_open(trained / WEIGHTS, "pt") as file:
        header = file.metadata()
    assert header["trained_with"] == "difftrain"
    assert header["training.steps"] == "3"
    assert header["modelspec.architecture"] == "flux-1-kontext-dev"
    assert header["format"] == "pt"
    card = (trained / "README.md").read_text()
    assert "A full fine-tune of the denoiser that edits images with `tiny-random`." in card
    assert "load_lora_weights" not in card
    assert "| model_type | full |" in card
    assert "lora" not in card.lower()


def test_the_code_of_the_card_loads_the_model(trained, tmp_path, monkeypatch):
    """Up to the GPU: the card's loading lines give a pipeline with the trained weights."""
    code = re.search(r"```python\n(.*?)```", (trained / "README.md").read_text(), re.DOTALL)[1]
    loading = code.partition("pipeline.to(")[0].replace('"tiny-random"', repr(str(tiny_random_folder())))
    (tmp_path / "card.py").write_text(loading)
    monkeypatch.chdir(trained)
    pipeline = runpy.run_path(str(tmp_path / "card.py"))["pipeline"]
    name, saved = next(iter(load_file(trained / WEIGHTS).items()))
    assert torch.equal(pipeline.transformer.state_dict()[name].float(), saved)


def test_the_run_trains_on_from_the_model_and_a_sharded_one_is_identified(pairs, trained, monkeypatch):
    """As the denoiser of another run, whose results are in several files."""
    monkeypatch.setattr(write_model, "SHARD_BYTES", 500_000)
    options = {"output_dir": "second", "max_train_steps": 1, "checkpoint_step_interval": 0, "learning_rate": 1e-9}
    options |= {"pretrained_transformer_model_name_or_path": str(trained / "transformer")}
    ended = run_in(pairs.folder, *arguments(pairs, **options))
    assert ended.status == 0, ended.err
    before, after = stock(trained).state_dict(), stock(pairs.folder / "second").state_dict()
    assert all((before[name] - after[name]).abs().max() < 1e-6 for name in before)
    folder = pairs.folder / "second/transformer"
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) == 5
    assert files[0] == "diffusion_pytorch_model-00001-of-00005.safetensors"
    for named in ("second", "second/transformer"):
        found = run_in(pairs.folder, "identify", named, "--json").json
        assert "the whole denoiser: transformer, a denoiser in diffusers layout, in 5 files" in found["what"]
        assert found["flavours"] == ["kontext"]
        assert found["dtypes"] == {"F32": len(before)}


def test_a_sharded_transformer_without_a_run_is_identified(pairs, tmp_path):
    stock(tiny_random_folder()).save_pretrained(tmp_path / "sharded", max_shard_size="500KB")
    found = run_in(tmp_path, "identify", "sharded", "--json").json
    assert found["what"] == "a denoiser in diffusers layout, in 5 files"
    assert found["family"] == "flux"
    assert "guidance_embeds: true" in found["seen"]
    (tmp_path / "sharded/diffusion_pytorch_model-00002-of-00005.safetensors").unlink()
    ended = run_in(tmp_path, "identify", "sharded")
    assert "cannot be used: no diffusion_pytorch_model-00002-of-00005.safetensors" in ended.out


@pytest.mark.parametrize("named", ["whole", "whole/checkpoint-4", "whole/transformer"])
def test_the_model_is_exported_with_the_other_parts(pairs, whole, tmp_path, named):
    output = tmp_path / "merged"
    ended = run_in(pairs.folder, "export", named, "--merge", "--dtype", "fp16", "--output", output)
    assert ended.status == 0, ended.err
    assert "verify: prediction of the merged model" in ended.err
    assert (output / "model_index.json").is_file()
    assert (output / "vae").is_dir()
    exact, rounded = load_file(pairs.folder / "whole" / WEIGHTS), load_file(output / WEIGHTS)
    assert {name: part.half() for name, part in exact.items()}.keys() == rounded.keys()
    assert all(torch.equal(rounded[name], part.half()) for name, part in exact.items())


def test_an_exported_model_says_what_it_is(pairs, whole, tmp_path):
    output = tmp_path / "model"
    assert run_in(pairs.folder, "export", "whole", "--merge", "--no_verify", "--output", output).status == 0
    (file,) = (output / "transformer").glob("*.safetensors")
    texts = read_header(file).texts
    assert texts["modelspec.architecture"] == "flux-1-kontext-dev"
    assert texts["trained_with"] == "difftrain"


def test_a_lora_of_the_difference_has_its_linear_layers_and_says_what_it_lacks(pairs, whole, tmp_path):
    ended = run_in(pairs.folder, "export", "whole", "--as_lora", 96, "--output", tmp_path / "near.safetensors")
    assert ended.status == 0, ended.err
    assert "trained weights are no matrices of linear layers, and no part of a LoRA" in ended.err
    before, after = load_file(tiny_random_folder() / WEIGHTS), load_file(pairs.folder / "whole" / WEIGHTS)
    lora = load_file(tmp_path / "near.safetensors")
    layer = "transformer_blocks.0.attn.to_q"
    made = lora[f"transformer.{layer}.lora_B.weight"] @ lora[f"transformer.{layer}.lora_A.weight"]
    wanted = after[f"{layer}.weight"] - before[f"{layer}.weight"]
    assert (made - wanted).norm() < 0.01 * wanted.norm()
    assert re.search(r"0\.\d{4}  mean of 50 modules, relative error at this rank", ended.out)


def test_other_exports_are_refused_with_those_that_there_are(pairs, whole, tmp_path):
    ended = run_in(pairs.folder, "export", "whole", "--output", tmp_path / "there")
    assert ended.status == 2
    assert "whole has a whole model, and no adapter: add --merge" in ended.err
    assert "--as_lora RANK" in ended.err


@pytest.mark.parametrize("how", [("--merge",), ("--as_lora", 4)])
def test_another_model_than_the_base_is_refused_before_anything_is_written(pairs, whole, tmp_path, how):
    named = ("--model", "flux", "--flavour", "kontext", "--pretrained_model_name_or_path", "tiny")
    ended = run_in(pairs.folder, "export", "whole", *how, "--output", tmp_path / "a.safetensors", *named)
    assert ended.status == 2, ended.err
    assert "whole/transformer is not trained from tiny:" in ended.err
    assert "weights differ by name or shape" in ended.err
    assert list(tmp_path.iterdir()) == []


def edited(pairs, folder, *more):
    flags = [word for key, value in DRAWING.items() for word in (f"--{key}", value)]
    ended = run_in(
        pairs.folder, "edit", "--image", "references/0000.png", "--prompt", "x", "--output", folder, *flags, *more
    )
    assert ended.status == 0, ended.err
    return {path.stem: path.read_bytes() for path in folder.glob("*.png") if path.stem != "sheet"}


def test_edit_draws_between_the_base_and_the_trained_model(pairs, whole, tmp_path):
    grid = edited(pairs, tmp_path / "grid", "--adapter", "whole", "--strength", "0.5,1", "--compare", "base",
                  "--checkpoints", "all")  # fmt: skip
    assert len(grid) == len(set(grid.values())) == 5
    alone = edited(pairs, tmp_path / "alone", "--adapter", "whole/transformer")
    assert list(alone.values()) == [grid["0000-step-4-strength-1"]]
    base = edited(pairs, tmp_path / "base", "--adapter", "whole/checkpoint-2", "--strength", "0")
    assert list(base.values()) == [grid["0000-base"]]


def test_a_model_that_no_run_trained_is_no_adapter(pairs, tmp_path):
    stock(tiny_random_folder()).save_pretrained(tmp_path / "alone")
    ended = run_in(pairs.folder, "edit", "--adapter", tmp_path / "alone", "--image", "references/0000.png")
    assert ended.status == 2
    assert "is a whole model, and not in a run's folder" in ended.err


def test_the_plan_counts_all_weights_and_offers_only_plain_ones(pairs):
    ended = run_in(pairs.folder, "plan", *arguments(pairs, output_dir="planned", mixed_precision="bf16"), "--json")
    assert ended.status == 0, ended.err
    assert ended.json["trained_weights"] == 489_664
    assert {row["best"]["base_model_precision"] for row in ended.json["cards"]} == {"no_change"}
    # bfloat16 weights with AdamW's two means and a compensation, and a gradient for each
    least = 489_664 * (2 + 2 + 6) / 2**30
    assert all(least < row["best"]["peak_gib"] + 0.005 for row in ended.json["cards"])
