"""Weights of another flavour or model than the one to train: `check` and the run say what they are."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from model_runs import CARD, DEV, KONTEXT, check_model

from difftrain.model.diffusers_folder import config_name
from difftrain_flux.built_in import TINY_FOLDER
from difftrain_flux.model_files.folder import NEEDED


def change_json(path, changes):
    """Set keys; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def model(tmp_path):
    """Make a local model folder; return a function that changes its small files and names it."""

    def saved(name="my-model", index=(), transformer=(), card=None):
        folder = Path(shutil.copytree(TINY_FOLDER, tmp_path / name))
        change_json(folder / "model_index.json", dict(index))
        change_json(folder / "transformer" / "config.json", dict(transformer))
        if card is not None:
            (folder / "README.md").write_text(card)
        return name

    return saved


@pytest.fixture
def checked(command, edit_pairs):
    """Check or train with a flavour on a model."""
    return partial(check_model, command, edit_pairs)


DEV_FILES = {"index": {"_class_name": "FluxPipeline"}}
SCHNELL_FILES = DEV_FILES | {"transformer": {"guidance_embeds": False}}


@pytest.mark.parametrize("program", ["check", None])
@pytest.mark.parametrize(
    "name",
    [
        DEV,
        "Black-Forest-Labs/flux.1-DEV",
        f"{DEV}/",
        f"https://huggingface.co/{DEV}",
        f"huggingface.co/{DEV}/tree/main",
        f"https://hf.co/{DEV}/blob/main/flux1-dev.safetensors",
        f"https://huggingface.co/{DEV}.git",
        f"hf://{DEV}",
        "/home/me/.cache/huggingface/hub/models--black-forest-labs--FLUX.1-dev/snapshots/0123abc",
        "hub/models--black-forest-labs--FLUX.1-dev",
    ],
)
def test_a_flux_dev_file_with_one_switched_flag_is_told_what_to_write(checked, program, name):
    ended = checked("kontext", name, program=program)
    assert ended.status == 2
    assert f"pretrained_model_name_or_path: {name} has the weights of flavour 'dev'" in ended.err
    assert "but model_flavour is 'kontext'" in ended.err
    assert f'write "pretrained_model_name_or_path": "{KONTEXT}" or leave it out' in ended.err
    assert 'write "model_flavour": "dev"' in ended.err
    assert "scan" not in ended.err


@pytest.mark.parametrize("flavour", ["dev", "krea", "schnell"])
def test_kontext_named_beside_any_other_flavour_is_reported_too(checked, flavour):
    ended = checked(flavour, KONTEXT)
    assert ended.status == 2
    assert f"has the weights of flavour 'kontext', but model_flavour is {flavour!r}" in ended.err


def test_it_is_reported_together_with_the_other_errors_of_the_config(checked):
    ended = checked("kontext", DEV, "--optimizer", "adamm")
    assert "has the weights of flavour 'dev'" in ended.err
    assert "unknown optimizer" in ended.err


@pytest.mark.parametrize(
    ("flavour", "files", "said"),
    [
        ("kontext", DEV_FILES, "the weights of flavour 'dev' or 'krea' (pipeline FluxPipeline, guidance_embeds true)"),
        ("kontext", {"index": {"_class_name": "FluxInpaintPipeline"}}, "the weights of flavour 'dev' or 'krea'"),
        ("dev", {}, "the weights of flavour 'kontext' (pipeline FluxKontextPipeline"),
        ("krea", {"index": {"_class_name": "FluxKontextInpaintPipeline"}}, "the weights of flavour 'kontext'"),
        ("dev", SCHNELL_FILES, "the weights of flavour 'schnell' (pipeline FluxPipeline, guidance_embeds false)"),
        ("kontext", SCHNELL_FILES, "the weights of flavour 'schnell'"),
        ("schnell", DEV_FILES, "the weights of flavour 'dev' or 'krea'"),
        ("kontext", {"index": {"_class_name": "FluxFillPipeline"}}, "is FLUX.1 Fill"),
        ("dev", {"transformer": {"in_channels": 384}}, "is FLUX.1 Fill (its transformer takes 384 channels, not 64)"),
        ("dev", {"transformer": {"in_channels": 128}}, "is FLUX.1 Depth or Canny"),
        ("dev", {"index": {"_class_name": "FluxControlPipeline"}}, "is FLUX.1 Depth or Canny"),
        ("dev", {"index": {"_class_name": "FluxPriorReduxPipeline"}}, "is FLUX.1 Redux"),
        (
            "kontext",
            {"index": {"_class_name": "StableDiffusionXLPipeline", "transformer": None}},
            "is a StableDiffusionXLPipeline (transformer: none)",
        ),
        (
            "kontext",
            {
                "index": {
                    "_class_name": "QwenImageEditPipeline",
                    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
                }
            },
            "is a QwenImageEditPipeline (transformer: QwenImageTransformer2DModel)",
        ),
        (
            "dev",
            {"index": {"_class_name": "Flux2Pipeline", "transformer": ["diffusers", "Flux2Transformer2DModel"]}},
            "is a Flux2Pipeline",
        ),
        (
            "dev",
            {"transformer": {"_class_name": "SD3Transformer2DModel"}},
            "the transformer is a SD3Transformer2DModel",
        ),
        ("dev", {"index": {"_class_name": "MyOwnPipeline"}}, "no flavour of 'flux' (pipeline MyOwnPipeline"),
    ],
)
def test_a_folder_of_other_weights_is_named_before_data_is_scanned(checked, model, flavour, files, said):
    for program in ("check", None):
        ended = checked(flavour, model(f"model-{program}", **files), program=program)
        assert ended.status == 2
        assert said in ended.err
        assert "\nhint: " in ended.err or "but model_family flux" in ended.err
        assert "scan" not in ended.err


def test_distilled_weights_under_another_name_come_with_the_warning(checked, model):
    name = model(**SCHNELL_FILES)
    assert f"training such a model makes its images collapse: train {DEV} instead" in checked("dev", name).err
    allowed = checked("dev", name, "--allow_other_weights")
    assert allowed.status == 0, allowed.err
    assert "because allow_other_weights is on; these are step-distilled" in allowed.out


def test_other_weights_can_be_trained_on_purpose_and_are_noted(checked, model):
    for name in (model("saved-as-dev", **DEV_FILES), model("models--black-forest-labs--FLUX.1-dev")):
        ended = checked("kontext", name, "--allow_other_weights", "true")
        assert ended.status == 0, ended.err
        assert "they are trained as 'kontext' because allow_other_weights is on" in ended.out


NO_INDEX = {"index": {"_class_name": None}}


@pytest.mark.parametrize(
    ("flavour", "name", "files", "said"),
    [
        ("kontext", "mine", NO_INDEX, "does not say which flavour its weights are (unknown: pipeline)"),
        ("kontext", "FLUX.1-dev", NO_INDEX, "may belong to flavour 'dev', as the name 'FLUX.1-dev' suggests"),
        ("dev", "flux-kontext_dev", NO_INDEX, "may belong to flavour 'kontext'"),
        ("krea", "FLUX.1-dev", DEV_FILES, "may belong to flavour 'dev'"),
        ("dev", "flux1-krea-dev-bf16", DEV_FILES, "may belong to flavour 'krea'"),
        ("krea", "mine", DEV_FILES | {"card": CARD.format(f" {DEV}")}, f"as the name '{DEV}' suggests"),
        ("krea", "mine", DEV_FILES | {"card": CARD.format(f"\n  - {DEV}")}, f"as the name '{DEV}' suggests"),
        ("krea", "mine", {"index": {"_class_name": "FluxPipeline", "_name_or_path": DEV}}, f"name '{DEV}' suggests"),
        ("krea", "mine", DEV_FILES | {"transformer": {"_name_or_path": "../flux-dev/transformer"}}, "flavour 'dev'"),
    ],
)
def test_what_is_only_likely_or_cannot_be_told_is_a_note(checked, model, flavour, name, files, said):
    ended = checked(flavour, model(name, **files))
    assert ended.status == 0, ended.err
    (note,) = [line for line in ended.out.splitlines() if line.startswith("note: model ")]
    assert said in note


@pytest.mark.parametrize(
    ("flavour", "name", "files"),
    [
        ("kontext", "mine", {}),
        ("kontext", "FLUX.1-dev", {}),  # the pipeline's class is more reliable than a name
        ("dev", "my-finetune", DEV_FILES),
        ("krea", "FLUX.1-Krea-dev", DEV_FILES | {"card": CARD.format(f" {DEV}")}),
        ("schnell", "FLUX.1-dev", SCHNELL_FILES),
        ("dev", "models--black-forest-labs--FLUX.1-dev", DEV_FILES),
    ],
)
def test_weights_that_fit_are_no_matter(checked, model, flavour, name, files):
    ended = checked(flavour, model(name, **files))
    assert ended.status == 0, ended.err
    assert "note: model" not in ended.out
    assert f"weights of {flavour}" in ended.out or "weights of dev or krea" in ended.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        ("\ud800", "is not valid JSON"),
        (None, "cannot be read"),
    ],
)
@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json"])
def test_a_damaged_file_is_named(checked, model, tmp_path, file, content, said):
    name = model()
    path = tmp_path / name / file
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_text(content, errors="surrogatepass")
    ended = checked("kontext", name)
    assert ended.status == 2
    is_no_file = content is None and file.endswith("config.json")
    assert ("transformer (no config.json)" if is_no_file else said) in ended.err
    assert is_no_file or f"{name}/{file}" in ended.err


@pytest.mark.parametrize(("file", "lacks"), [(f"{part}/{config_name(part)}", keys[0]) for part, keys in NEEDED.items()])
def test_a_config_that_says_nothing_is_reported_by_check(checked, model, tmp_path, file, lacks):
    name = model()
    (tmp_path / name / file).write_text("{}")
    ended = checked("kontext", name)
    assert ended.status == 2
    part, _, config = file.partition("/")
    assert f"model folder {name}: 1 of 7 parts cannot be used: {part} ({config} has no {lacks}" in ended.err


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("vae/config.json", {"latent_channels": 4}),
        ("vae/config.json", {"block_out_channels": "many"}),
        ("text_encoder/config.json", {"hidden_size": 64}),
        ("text_encoder_2/config.json", {"d_model": 64}),
        ("transformer/config.json", {"num_layers": "two"}),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_one_error_that_names_the_part(
    checked, model, tmp_path, file, changes
):
    name = model()
    change_json(tmp_path / name / file, changes)
    ended = checked("kontext", name, program=None)
    assert ended.status == 2
    assert f"error: {tmp_path / name / file.partition('/')[0]} cannot be loaded: " in ended.err
    assert "Traceback" not in ended.err


def test_a_transformer_with_more_blocks_than_its_weights_is_one_error_that_names_them(checked, model, tmp_path):
    name = model()
    change_json(tmp_path / name / "transformer" / "config.json", {"num_layers": 3})
    ended = checked("kontext", name, program=None)
    assert ended.status == 2
    assert f"error: model '{name}': its weights are not the" in ended.err
    assert "are missing: transformer_blocks.2." in ended.err


@pytest.mark.parametrize("name", ["~nobody/model", "x" * 5000, "o/" + "x" * 300])
def test_a_name_that_no_disk_has_is_reported_as_any_other(checked, name):
    ended = checked("kontext", name)
    assert ended.status == 2
    assert ended.err.startswith("error: model ")


def test_a_folder_that_cannot_be_read_is_named(checked, model, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "vae")

    name = model()
    monkeypatch.setattr("difftrain_flux.model_files.locate.fingerprint", refuse)
    assert f"model folder {name} cannot be read: [Errno 13] Permission denied" in checked("kontext", name).err


def test_a_folder_of_the_hub_cache_is_pointed_to_its_snapshot(checked, model, tmp_path):
    name = model("models--someone--mine/snapshots/0123abc")
    assert f"name the snapshot in it: {name}" in checked("kontext", "models--someone--mine").err


def test_a_folder_with_a_single_file_checkpoint_is_pointed_to_the_option_for_it(checked, tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "flux1-kontext-dev.safetensors").write_bytes(b"")
    said = checked("kontext", "comfy").err
    assert "model folder comfy has only single files, but the text encoders, the VAE and the scheduler" in said
    assert 'hint: write it as "pretrained_transformer_model_name_or_path"' in said


def test_check_as_json_has_what_the_weights_are(checked, model):
    found = checked("kontext", model(**DEV_FILES), "--allow_other_weights", "--json").json
    assert found["model"]["weights_of"] == ["dev", "krea"]


@pytest.mark.parametrize("flavour", ["kontext", "dev", "krea", "schnell"])
@pytest.mark.parametrize("name", ["tiny", "tiny-random"])
def test_the_built_in_models_are_for_every_flavour(checked, flavour, name):
    ended = checked(flavour, name)
    assert ended.status == 0, ended.err
    assert f"model: flux {flavour}, {name}\n" in ended.out
    assert "note: model" not in ended.out
