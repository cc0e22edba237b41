"""Finding the model: the built-in one, folders, hub ids, and the messages when it fails."""

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    Response,
)
from safetensors.numpy import load_file

from difftrain import ModelError, ModelLocation
from difftrain_flux import built_in
from difftrain_flux.family import FluxFamily
from difftrain_flux.flavours import Dev
from difftrain_flux.model_files.components import local_folder
from difftrain_flux.model_files.tiny_random import ensure_tiny_random
from difftrain_flux_kontext.flavour import Kontext

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tiny_random(tmp_path_factory):
    return ensure_tiny_random(tmp_path_factory.mktemp("first") / built_in.TINY_RANDOM_IDENTITY)


@pytest.fixture
def copy(tiny_random, tmp_path):
    return Path(shutil.copytree(tiny_random, tmp_path / "copy"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(monkeypatch, error):
    """Let the hub answer every request with an error."""

    def snapshot_download(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def http_error(kind):
    request = sys.modules[Response.__module__.split(".")[0]].Request("GET", "https://huggingface.co")
    response = Response(403, request=request)
    assert "response" in inspect.signature(kind).parameters
    return kind("403 Client Error", response=response)


# the built-in checkpoints


def test_tiny_random_has_equal_bytes_on_two_builds(tiny_random, tmp_path):
    assert files_of(ensure_tiny_random(tmp_path / built_in.TINY_RANDOM_IDENTITY)) == files_of(tiny_random)


def test_tiny_random_weights_are_those_of_the_recipes_version(tiny_random):
    # the golden value is this recipe's own; if it changes, change TINY_RANDOM_VERSION, or old caches pass for new
    digest = hashlib.sha256()
    for path in sorted(tiny_random.rglob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(name.encode() + tensor.tobytes())
    assert (built_in.TINY_RANDOM_VERSION, digest.hexdigest()[:16]) == (1, "fc68bb0cdeee82a4")


def test_tiny_random_loads_in_the_stock_pipeline(tiny_random):
    from diffusers import FluxKontextPipeline

    pipeline = FluxKontextPipeline.from_pretrained(tiny_random)
    assert pipeline.tokenizer.decode(pipeline.tokenizer("red sky").input_ids, skip_special_tokens=True) == "red sky"
    assert pipeline.tokenizer_2.decode(pipeline.tokenizer_2("red sky").input_ids, skip_special_tokens=True) == "red sky"


def test_tiny_random_is_complete_in_whichever_process_of_a_run_builds_it(tiny_random, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 1)
    assert files_of(ensure_tiny_random(tmp_path / built_in.TINY_RANDOM_IDENTITY)) == files_of(tiny_random)


def test_tiny_random_that_lacks_weights_is_built_again(tiny_random, copy):
    shutil.rmtree(copy / "text_encoder")
    assert files_of(ensure_tiny_random(copy)) == files_of(tiny_random)


def test_building_tiny_random_leaves_the_callers_random_state_alone(tmp_path):
    import torch

    before = torch.random.get_rng_state()
    ensure_tiny_random(tmp_path / built_in.TINY_RANDOM_IDENTITY)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tiny_random_leaves_nothing_but_the_finished_folder(tiny_random):
    assert [path.name for path in tiny_random.parent.iterdir()] == [built_in.TINY_RANDOM_IDENTITY]


def test_tiny_random_that_cannot_be_written_says_which_folder_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written to .*\nhint: set XDG_CACHE_HOME"):
        ensure_tiny_random(tmp_path / "file" / "difftrain" / built_in.TINY_RANDOM_IDENTITY)


def test_tiny_random_is_found_without_being_built(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    location = FluxFamily().locate("tiny-random", Kontext())
    assert location.path == tmp_path / "difftrain" / built_in.TINY_RANDOM_IDENTITY
    assert location.identity == built_in.TINY_RANDOM_IDENTITY
    assert not location.path.exists()


def test_tiny_is_the_trained_checkpoint_of_the_package():
    location = FluxFamily().locate("tiny", Kontext())
    assert location.path == built_in.TINY_FOLDER.resolve()
    assert location.identity == FluxFamily().locate(str(built_in.TINY_FOLDER), Kontext()).identity


@pytest.mark.parametrize("name", built_in.BUILT_IN)
def test_finding_a_model_imports_no_torch(name):
    code = (
        "import sys; from difftrain_flux.plugin import *; from difftrain_flux_kontext.plugin import *;"
        f"family = FluxFamily(); location = family.locate({name!r}, Dev());"
        "family.text_identity(location, Dev()); family.image_identity(location);"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.strip() == "[]"


# local folders


def test_identity_of_a_folder_is_its_content_not_its_path(copy, tmp_path):
    first = FluxFamily().locate(str(copy), Dev())
    moved = copy.rename(tmp_path / "moved")
    assert FluxFamily().locate(str(moved), Dev()).identity == first.identity


@pytest.mark.parametrize("place", [0, -1])
def test_changed_weights_change_the_identity(copy, place):
    before = FluxFamily().locate(str(copy), Dev()).identity
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[place if place < 0 else int.from_bytes(content[:8], "little") + 8] ^= 1
    weights.write_bytes(content)
    assert FluxFamily().locate(str(copy), Dev()).identity != before


def test_changed_transformer_keeps_the_identity_of_text_and_images(copy):
    family = FluxFamily()

    def identities():
        location = family.locate(str(copy), Dev())
        return location.identity, family.text_identity(location, Dev()), family.image_identity(location)

    before = identities()
    config = copy / "transformer" / "config.json"
    config.write_text(config.read_text().replace("}", ' ,"note": 1}'))
    after = identities()
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_missing_components_are_all_named(copy):
    shutil.rmtree(copy / "vae")
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        FluxFamily().locate(str(copy), Dev())
    assert "2 of 7 parts" in str(caught.value)
    assert "vae (no such folder)" in str(caught.value)
    assert "transformer (no *.safetensors)" in str(caught.value)


def test_missing_shard_is_named(copy):
    index = copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}')
    (copy / "transformer" / "part-1.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"transformer \(no part-2.safetensors\)"):
        FluxFamily().locate(str(copy), Dev())


def test_truncated_weights_are_noticed(copy):
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        FluxFamily().locate(str(copy), Dev())


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder_2"])
def test_weights_whose_last_part_is_missing_are_noticed(copy, component):
    # the header is whole, so `check` once said "ready to train" and the load ended in a traceback
    (weights,) = (copy / component).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is cut short or damaged"):
        FluxFamily().locate(str(copy), Dev())


def test_folder_of_another_architecture_is_refused(copy):
    config = copy / "transformer" / "config.json"
    config.write_text(config.read_text().replace("FluxTransformer2DModel", "SD3Transformer2DModel"))
    with pytest.raises(ModelError, match="the transformer is a SD3Transformer2DModel"):
        FluxFamily().locate(str(copy), Dev())


@pytest.mark.parametrize("name", ["/no/such/folder", "./no", "flux-dev"])
def test_what_is_neither_folder_nor_hub_id_is_refused_with_the_usual_one(name):
    with pytest.raises(
        ModelError, match=r"not a hub id.* and not built in \(tiny, tiny-random\)\n.*black-forest-labs/FLUX.1-dev"
    ):
        FluxFamily().locate(name, Dev())


def test_single_file_as_the_whole_model_is_refused_with_its_own_option(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"single file.*\nhint: .*pretrained_transformer_model_name_or_path"):
        FluxFamily().locate(str(tmp_path / "model.safetensors"), Dev())


# hub ids


def test_hub_id_is_pinned_to_the_commit_it_stands_for(monkeypatch, tmp_path):
    snapshot = tmp_path / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: str(snapshot))
    location = FluxFamily().locate(None, Dev())
    assert (location.name, location.path, location.revision) == (Dev.hub_id, None, COMMIT)
    assert COMMIT in location.identity


def test_cached_hub_model_is_found_without_network(monkeypatch, tmp_path):
    cached = tmp_path / "models--someone--model"
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert FluxFamily().locate("someone/model", Dev()).revision == COMMIT


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (lambda: http_error(GatedRepoError), "the weights are gated"),
        (lambda: http_error(RepositoryNotFoundError), "no such repository"),
        (lambda: LocalEntryNotFoundError("nothing cached"), "cannot be reached"),
        (lambda: OfflineModeIsEnabled("offline"), "cannot be reached"),
        (lambda: OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_every_refusal_names_licence_login_and_local_copy(monkeypatch, error, says):
    refuse(monkeypatch, error())
    with pytest.raises(ModelError) as caught:
        FluxFamily().locate(None, Kontext())
    message = str(caught.value)
    assert message.count("\nhint:") == 1
    for part in (says, Kontext.licence_url, "`hf auth login`", "pretrained_model_name_or_path"):
        assert part in message


def test_refusal_while_downloading_weights_is_explained_too(monkeypatch):
    refuse(monkeypatch, LocalEntryNotFoundError("half cached"))
    location = ModelLocation(name=Dev.hub_id, identity="x", path=None, revision=COMMIT)
    with pytest.raises(ModelError, match="not all in the local hub cache"):
        local_folder(location, ("vae",))


def test_the_folder_of_a_denoiser_alone_is_said_by_its_own_name(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    (tmp_path / "another.safetensors").touch()
    with pytest.raises(ModelError) as caught:
        FluxFamily().locate_with_denoiser("tiny-random", str(folder), Kontext())
    problem, hint = str(caught.value).splitlines()
    assert problem.startswith(f"{folder} cannot be used: config.json has no num_layers, ")
    assert problem.endswith(", no *.safetensors")
    assert "another.safetensors" not in hint
