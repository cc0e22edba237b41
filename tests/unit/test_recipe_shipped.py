"""The small model as shipped: small, plain files, with a record of what it was made from."""

import json

import pytest
from recipe_modules import recipe_modules
from safetensors import safe_open

from difftrain_flux.built_in import TINY_FOLDER

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
PRECISE = ("grey", "negative", "mirror", "tint", "darker", "swap_colours", "keep")
"""Edits that it does nearly as well as its VAE allows."""


@pytest.fixture(scope="module")
def metrics():
    return json.loads((TINY_FOLDER / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def files():
    return [path for path in TINY_FOLDER.rglob("*") if path.is_file()]


def test_the_folder_is_at_most_24_mb(files):
    assert sum(path.stat().st_size for path in files) <= 24_000_000


def test_there_are_only_json_and_safetensors(files):
    assert {path.suffix for path in files} == {".json", ".safetensors"}


@pytest.mark.parametrize("part", PARTS)
def test_weights_are_bfloat16(part):
    (path,) = (TINY_FOLDER / part).glob("*.safetensors")
    with safe_open(path, "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_recipe_version_and_seed_are_reported(metrics):
    assert metrics["recipe"] == recipe_modules().architecture.RECIPE_VERSION
    assert metrics["seed"] == 0


def test_the_data_is_reported_with_its_licences(metrics):
    assert metrics["data"] == recipe_modules().sources.licences()
    assert all(entry["package"] and entry["licence"] and entry["files"] > 0 for entry in metrics["data"])


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_how_long_it_was_trained_is_reported(metrics, part):
    training = metrics["training"][part]
    assert training["steps"] > 1000
    assert training["seconds"] > 60
    assert (training["seed"], training["recipe"]) == (metrics["seed"], metrics["recipe"])


def test_the_latents_are_scaled_as_the_training_measured(metrics):
    config = json.loads((TINY_FOLDER / "vae" / "config.json").read_text(encoding="utf-8"))
    for name in ("shift_factor", "scaling_factor"):
        assert config[name] == pytest.approx(metrics["training"]["vae"][name], abs=1e-4)


def test_every_kind_of_edit_was_measured(metrics):
    assert set(metrics["edits"]) == set(recipe_modules().evaluate.SHEET_KINDS) - {"describe"}


@pytest.mark.parametrize("kind", PRECISE)
def test_an_edit_is_within_two_db_of_what_the_vae_allows(metrics, kind):
    measured = metrics["edits"][kind]
    assert measured["psnr"] > measured["vae_bound"] - 2


def test_the_true_reference_and_caption_were_measured_as_the_best(metrics):
    losses = metrics["velocity_loss"]
    assert losses["true"] < 0.5 * min(losses[name] for name in ("none", "shuffled", "wrong_caption"))
