"""Finding models in diffusers layout for third-party families: folders, hub repositories, and their messages."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from difftrain import DiffusersFiles, ModelError

FLAVOUR = SimpleNamespace(name="base", hub_id="someone/model", licence_url=None)
FILES = DiffusersFiles(weighted=("unet",), others=("tokenizer", "scheduler"), needed={"unet": ("width",)})


@pytest.fixture
def folder(tmp_path):
    """Write a complete model."""
    root = tmp_path / "model"
    for name in FILES.components:
        (root / name).mkdir(parents=True)
    index = {"_class_name": "SomePipeline", **{name: ["library", "Class"] for name in FILES.components}}
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "unet" / "config.json").write_text('{"width": 8}')
    save_file({"weight": torch.ones(4)}, root / "unet" / "diffusion_pytorch_model.safetensors")
    (root / "tokenizer" / "vocab.json").write_text("{}")
    (root / "scheduler" / "scheduler_config.json").write_text('{"steps": 1000}')
    return root


@pytest.fixture
def hub(folder, monkeypatch):
    """Make the hub have the model; return the patterns that were asked for."""
    asked = []
    snapshot = folder.rename(folder.parent / "0123abc")

    def snapshot_download(hub_id, *, revision=None, allow_patterns, ignore_patterns=()):
        asked.append((hub_id, revision, allow_patterns, ignore_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def locate(name, examine=lambda where, configs: {}):
    return FILES.locate(None if name is None else str(name), FLAVOUR, examine)


def test_a_folder_is_found_with_its_facts(folder):
    change = json.loads((folder / "model_index.json").read_text()) | {"is_distilled": True}
    (folder / "model_index.json").write_text(json.dumps(change))

    def examine(where, configs):
        return {"width": str(configs["unet"]["width"]), "distilled": str(configs["model_index"]["is_distilled"])}

    location = locate(folder, examine)
    assert (location.path, location.facts) == (folder, {"pipeline": "SomePipeline", "width": "8", "distilled": "True"})
    assert FILES.folder(location, "unet") == folder
    assert FILES.config(location, "scheduler") == {"steps": 1000}


def test_identities_are_of_the_parts_that_are_asked_for(folder):
    before = locate(folder)
    tokenizer, unet = (FILES.identity(before, name) for name in ("tokenizer", "unet"))
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 1}')
    after = locate(folder)
    assert after.identity != before.identity
    assert FILES.identity(after, "tokenizer") != tokenizer
    assert FILES.identity(after, "unet") == unet


def test_a_hub_model_is_known_by_its_commit_and_its_small_files(hub):
    location = locate(None, lambda where, configs: {"where": where, "steps": str(configs["scheduler"]["steps"])})
    assert (location.identity, location.revision, location.path) == ("someone/model@0123abc", "0123abc", None)
    assert location.facts == {"pipeline": "SomePipeline", "where": "hub model 'someone/model'", "steps": "1000"}
    small = ["model_index.json", "unet/config.json", "tokenizer/config.json", "scheduler/scheduler_config.json"]
    assert [patterns for _, _, patterns, _ in hub] == [small]
    assert FILES.identity(location, "unet") == location.identity
    assert FILES.config(location, "unet") == {"width": 8}
    assert hub[-1][:3] == ("someone/model", "0123abc", small)


def test_a_hub_model_without_a_config_is_reported(hub, folder):
    (folder.parent / "0123abc" / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"hub model 'someone/model' has no unet/config.json"):
        locate(None)


def test_weights_of_a_hub_model_are_downloaded_once_and_in_one_format(hub):
    location = locate(None)
    FILES.folder(location, "unet")
    _, revision, wanted, left_out = hub[-1]
    assert (revision, wanted) == ("0123abc", ["model_index.json", "unet/*"])
    assert {"*.bin", "*.fp16.*"} <= set(left_out)


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda root: (root / "unet" / "config.json").write_text("{}"), r"unet \(config.json has no width\)"),
        (lambda root: (root / "unet" / "config.json").unlink(), r"unet \(no config.json\)"),
        (lambda root: next((root / "unet").glob("*.safetensors")).unlink(), r"unet \(no \*.safetensors\)"),
        (lambda root: (root / "tokenizer" / "vocab.json").unlink(), r"tokenizer \(empty folder\)"),
        (lambda root: (root / "model_index.json").write_text("[]"), "must be a JSON object"),
        (lambda root: (root / "model_index.json").write_text('{"_class_name": "X"}'), "is a X without unet, tokenizer"),
    ],
)
def test_what_is_wrong_with_a_folder_is_reported(folder, break_it, told):
    break_it(folder)
    with pytest.raises(ModelError, match=told):
        locate(folder)


def test_what_is_neither_a_folder_nor_an_id_is_reported(folder):
    for name in ("nowhere", "./some/where", folder / "model_index.json"):
        with pytest.raises(ModelError, match="is neither a folder in diffusers layout nor a hub id"):
            locate(name)


def test_a_family_can_refuse(folder):
    def refuse(where, configs):
        raise ModelError(f"{where} is too narrow")

    with pytest.raises(ModelError, match=f"model folder {folder} is too narrow"):
        locate(folder, refuse)
