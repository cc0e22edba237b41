"""Runs whose denoiser comes from one safetensors file, or from another place than the rest of the model."""

import json
import re
import shutil
from pathlib import Path

import pytest
from forked_runs import ForkedRun
from model_runs import DEV, KONTEXT

from conftest import read_metrics, run_in
from difftrain_flux.built_in import TINY_FOLDER
from flux_single_files import in_fp8, original, prefixed, save, tiny_state

NAMED = "--pretrained_transformer_model_name_or_path"


@pytest.fixture(scope="module")
def state():
    return tiny_state()


@pytest.fixture
def arguments(edit_pairs):
    """Return the arguments of a run of two steps, with the other parts of a model."""
    datasets = edit_pairs(count=2)

    def with_model(model="tiny", *, validation_steps=0):
        kontext = [model if part == "tiny-random" else part for part in edit_pairs.kontext]
        kontext[kontext.index("--validation_steps") + 1] = str(validation_steps)
        return (*kontext, "--data_backend_config", datasets, "--max_train_steps", 2)

    return with_model


def losses(folder):
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


def bars(output):
    """Return the lines of the loading phase without times: its name, count and unit."""
    return [re.sub(r"[\d.]+ s\b|\d+/s\b", "", line) for line in output.splitlines() if "load model" in line]


def test_a_single_file_trains_as_the_folder_does(tmp_path, arguments, state):
    path = save(prefixed(original(state)), tmp_path / "flux1-kontext-dev.safetensors")
    ended = {}
    for output, more in (("folder", ()), ("file", (NAMED, path))):
        run = ForkedRun(tmp_path, (*arguments(), "--output_dir", output, *more))
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        ended[output] = out + err
    assert len(losses(tmp_path / "folder")) == 2
    assert losses(tmp_path / "file") == losses(tmp_path / "folder")
    assert bars(ended["file"]) == bars(ended["folder"]) != []
    # the captions and images are not encoded again
    assert "caches: complete" in ended["file"]


def test_check_names_the_file_and_whose_weights_they_are(command, tmp_path, arguments, state):
    path = save(original(state), tmp_path / "flux1-kontext-dev.safetensors")
    ended = command("check", *arguments(), NAMED, path)
    assert ended.status == 0, ended.err
    assert f"model: flux kontext, tiny with the denoiser of {path} (weights of " in ended.out
    assert "note: model" not in ended.out
    found = json.loads(command("check", "--json", *arguments(), NAMED, path).out)["model"]
    assert (found["name"], found["denoiser"]) == ("tiny", str(path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flux1-dev.safetensors", "may belong to flavour 'dev', as the name 'flux1-dev.safetensors' suggests"),
        ("mine.safetensors", "does not say which flavour its weights are (unknown: pipeline)"),
    ],
)
def test_a_file_whose_name_suggests_nothing_or_another_flavour_is_noted(
    command, tmp_path, arguments, state, name, said
):
    ended = command("check", *arguments(), NAMED, save(original(state), tmp_path / name))
    assert ended.status == 0, ended.err
    assert said in ended.out


def test_the_title_in_a_files_header_counts_like_its_name(command, tmp_path, arguments, state):
    path = save(original(state), tmp_path / "mine.safetensors", **{"modelspec.title": "Flux.1-dev"})
    assert "as the name 'Flux.1-dev' suggests" in command("check", *arguments(), NAMED, path).out


def without_guidance(state):
    return {name: tensor for name, tensor in state.items() if "guidance" not in name}


def test_a_file_of_another_flavour_is_an_error(command, tmp_path, arguments, state):
    companion = Path(shutil.copytree(TINY_FOLDER, tmp_path / "companion"))
    config = companion / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": False}))
    path = save(original(without_guidance(state)), tmp_path / "mine.safetensors")
    ended = command("check", *arguments(companion), NAMED, path)
    assert ended.status == 2
    assert f"model '{path}' has the weights of flavour 'schnell' (guidance_embeds false)" in ended.err
    assert f'write "pretrained_transformer_model_name_or_path": "{KONTEXT}"' in ended.err
    assert "scan" not in ended.err


@pytest.mark.parametrize("given", ["lora", "text encoder"])
def test_a_wrong_file_is_an_error_before_the_data_is_read(command, tmp_path, arguments, state, given):
    names = {"lora": "transformer.proj_out.lora_A.weight", "text encoder": "text_model.encoder.layers.0.mlp.fc1.weight"}
    path = save({names[given]: state["proj_out.weight"]}, tmp_path / "given.safetensors")
    for program in ((), ("check",)):
        ended = command(*program, *arguments(), NAMED, path)
        assert ended.status == 2
        assert f"{path} is a {'LoRA adapter' if given == 'lora' else 'CLIP text encoder'}, not the weights" in ended.err
        assert "scan" not in ended.err
        assert "Traceback" not in ended.err


def test_the_denoisers_hub_id_is_compared_and_not_that_of_the_other_parts(command, arguments):
    ended = command("check", *arguments(), NAMED, DEV)
    assert ended.status == 2
    assert f"pretrained_transformer_model_name_or_path: {DEV} has the weights of flavour 'dev'" in ended.err


def test_other_parts_may_be_those_of_another_flavour(command, tmp_path, arguments, state, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(TINY_FOLDER))
    path = save(original(state), tmp_path / "flux1-kontext-dev.safetensors")
    ended = command("check", *arguments(DEV), NAMED, path)
    assert ended.status == 0, ended.err


def test_an_eight_bit_file_trains_in_a_quantised_run(command, tmp_path, arguments, state):
    path = save(in_fp8(original(state), ".scale_weight"), tmp_path / "flux1-kontext-dev-fp8.safetensors")
    ended = command(*arguments(), NAMED, path, "--base_model_precision", "int8-quanto")
    assert ended.status == 0, ended.err
    assert len(losses(tmp_path / "output")) == 2


def test_a_folder_alone_with_the_transformer_trains_and_draws(command, tmp_path, arguments):
    folder = shutil.copytree(TINY_FOLDER / "transformer", tmp_path / "alone")
    ended = command(
        *arguments(validation_steps=2), NAMED, folder,
        "--num_eval_images", 1, "--validation_num_inference_steps", 1, "--validation_resolution", 64,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert any("fixed_loss" in line for line in read_metrics(tmp_path / "output"))
    assert list((tmp_path / "output").rglob("*.png"))


def test_a_folder_with_one_file_trains(command, tmp_path, arguments, state):
    (tmp_path / "folder").mkdir()
    save(original(state), tmp_path / "folder" / "flux1-kontext-dev.safetensors")
    ended = command(*arguments(), NAMED, tmp_path / "folder")
    assert ended.status == 0, ended.err
    assert len(losses(tmp_path / "output")) == 2


def test_another_denoiser_is_another_model_for_what_validations_measured(tmp_path, arguments, state):
    from difftrain.planning.model_plan import plan_model
    from difftrain.startup.encoded_form import model_identity
    from difftrain.startup.find_model import find_model

    def identity(**flags):
        flags = {"model_family": "flux", "model_flavour": "kontext", "pretrained_model_name_or_path": "tiny"} | flags
        plan = plan_model(None, flags)
        return model_identity(plan, find_model(plan).location)

    path = save(original(state), tmp_path / "one.safetensors")
    other = save({name: 2 * tensor for name, tensor in original(state).items()}, tmp_path / "other.safetensors")
    key = NAMED.removeprefix("--")
    assert len({identity(), identity(**{key: str(path)}), identity(**{key: str(other)})}) == 3


def test_a_family_with_one_place_for_its_model_refuses_the_option_with_the_config(command, edit_pairs):
    (edit_pairs.folder / "family.py").write_text(
        "from difftrain import hookimpl\nfrom difftrain.testing import TinyFamily, TinyFlavour\n"
        "@hookimpl\ndef difftrain_model_families():\n    return (TinyFamily,)\n"
        "@hookimpl\ndef difftrain_model_flavours():\n    return (TinyFlavour,)\n"
    )
    ended = command(
        "check", "--plugins", "./family.py", "--model", "tiny-test", "--data_backend_config",
        edit_pairs(references=None), "--max_train_steps", 1, NAMED, "some.safetensors", "--optimizer", "adamm",
    )  # fmt: skip
    assert ended.status == 2
    assert "pretrained_transformer_model_name_or_path: model_family 'tiny-test' takes its denoiser only" in ended.err
    assert "unknown optimizer" in ended.err  # together with the other problems


def test_a_single_file_as_the_whole_model_is_told_where_to_write_it(tmp_path, arguments, state):
    path = save(original(state), tmp_path / "mine.safetensors")
    ended = run_in(tmp_path, "check", *arguments(path))
    assert ended.status == 2
    assert 'hint: write it as "pretrained_transformer_model_name_or_path"' in ended.err


@pytest.mark.parametrize("whole", [True, False], ids=["other parts here", "other parts on the hub"])
def test_a_forecast_is_of_the_model_with_its_own_denoiser(command, tmp_path, arguments, state, whole):
    companion = Path(shutil.copytree(TINY_FOLDER, tmp_path / "companion"))
    for weights in (companion / "transformer").glob("*.safetensors"):
        weights.unlink()
    path = save(original(state), tmp_path / "mine.safetensors")
    ended = command("plan", "--json", *arguments(str(companion) if whole else KONTEXT), NAMED, path)
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert found["model"].endswith(f" with the denoiser of {path}")
    assert any("published" in note for note in found["notes"]) != whole
    save({"proj_out.lora_A.weight": state["proj_out.weight"]}, path)
    assert "is a LoRA adapter" in command("plan", *arguments(companion if whole else KONTEXT), NAMED, path).err
