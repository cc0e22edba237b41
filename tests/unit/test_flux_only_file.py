"""A folder or hub repository whose only safetensors file is the denoiser."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from difftrain import ModelError
from difftrain_flux.built_in import TINY_FOLDER
from difftrain_flux.flavours import Dev
from difftrain_flux.model_files.locate import locate, locate_with_denoiser
from difftrain_flux_kontext.flavour import Kontext
from flux_single_files import original, save, tiny_state

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save(original(tiny_state()), tmp_path_factory.mktemp("file") / "flux1-kontext.safetensors")


def denoiser_of(name):
    return locate_with_denoiser("tiny", str(name), Kontext()).of_denoiser


def test_the_only_file_of_a_folder_is_the_denoiser(tmp_path, file):
    path = Path(shutil.copy(file, tmp_path / "model.safetensors"))
    found, named = denoiser_of(tmp_path), denoiser_of(path)
    assert (found.path, found.identity, found.facts) == (path, named.identity, named.facts)
    assert found.name == str(tmp_path)


def test_several_files_of_a_folder_are_listed(tmp_path, file):
    for name in ("one.safetensors", "two.safetensors"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(ModelError) as caught:
        denoiser_of(tmp_path)
    assert str(caught.value) == (
        f"model folder {tmp_path} is not in diffusers layout and has 2 safetensors files: one.safetensors, "
        "two.safetensors\nhint: name the one to train with its path"
    )


def test_a_transformer_alone_is_no_single_file(tmp_path, file):
    folder = Path(shutil.copytree(TINY_FOLDER / "transformer", tmp_path / "alone"))
    shutil.copy(file, folder / "another.safetensors")
    assert denoiser_of(folder).path == folder


def test_single_files_as_the_whole_model_are_told_where_to_write_them(tmp_path, file):
    shutil.copy(file, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"has only single files.*\nhint: .*pretrained_transformer_model_name_or_path"):
        locate(str(tmp_path), Dev())


@pytest.fixture
def hub(monkeypatch, tmp_path, file):
    """Make the hub have a repository with these files; return the patterns that were downloaded."""
    asked = []

    def holds(*names, card="", offline=False):
        cache = tmp_path / "snapshots" / COMMIT
        cache.mkdir(parents=True)
        (cache / "README.md").write_text(card)

        def snapshot_download(hub_id, *, allow_patterns, revision=None):
            for name in set(allow_patterns) & set(names):
                asked.append(name)
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / name)
            return str(cache)

        def list_repo_files(_api, hub_id, *, revision):
            if offline:
                raise OfflineModeIsEnabled("no network")
            assert revision == COMMIT
            return [*names, "README.md"]

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
        return cache, asked

    return holds


def test_the_only_file_of_a_repository_is_the_denoiser(hub):
    cache, asked = hub("models/flux.safetensors", "flux.gguf", card="---\nbase_model: someone/first\n---\n")
    found = denoiser_of("someone/model")
    assert (found.name, found.path) == ("someone/model", cache / "models" / "flux.safetensors")
    assert asked == ["models/flux.safetensors"]
    assert found.facts == {"guidance_embeds": "true"}
    assert found.origins == ("someone/first",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a.safetensors", "b.safetensors"), "has 2 safetensors files: a.safetensors, b.safetensors\nhint: download"),
        (("flux.gguf",), "has no safetensors file\nhint: name a safetensors file"),
    ],
)
def test_a_repository_with_several_files_or_none_is_refused_before_any_download(hub, names, said):
    _, asked = hub(*names)
    with pytest.raises(ModelError) as caught:
        denoiser_of("someone/model")
    assert f"hub model 'someone/model' is not in diffusers layout and {said}" in str(caught.value)
    assert asked == []


def test_without_network_the_cached_file_will_do(hub, file):
    cache, _ = hub("flux.safetensors", offline=True)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        denoiser_of("someone/model")
    shutil.copy(file, cache / "flux.safetensors")
    assert denoiser_of("someone/model").path == cache / "flux.safetensors"


def test_a_repository_of_one_file_as_the_whole_model_is_told_where_to_write_it(hub):
    hub("flux.safetensors")
    with pytest.raises(ModelError, match=r"no model_index.json.*\nhint: .*pretrained_transformer_model_name_or_path"):
        locate("someone/model", Dev())
