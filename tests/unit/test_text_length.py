"""The number of T5 tokens of a prompt: the flavour's, or fewer if a local tokenizer allows fewer."""

import json

import pytest

from difftrain import ModelError, ModelLocation
from difftrain_flux.family import FluxFamily
from difftrain_flux.flavours import Dev, Schnell
from difftrain_flux.model_files.tiny_random import ensure_tiny_random
from difftrain_flux.text_length import TOKENIZER_CONFIG, text_length

NO_LIMIT = int(1e30)
"""The value that transformers writes for a tokenizer without a limit."""


@pytest.fixture
def located(tmp_path):
    """Return the location of a folder whose T5 tokenizer has this config (a text, or a value to write as JSON)."""

    def locate(config) -> ModelLocation:
        path = tmp_path / TOKENIZER_CONFIG
        path.parent.mkdir(exist_ok=True)
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return ModelLocation(name=str(tmp_path), identity="x", path=tmp_path)

    return locate


@pytest.mark.parametrize(("allowed", "dev", "schnell"), [(64, 64, 64), (300, 300, 256), (512, 512, 256)])
def test_a_tokenizer_that_allows_fewer_tokens_wins(located, allowed, dev, schnell):
    location = located({"model_max_length": allowed})
    assert (text_length(location, Dev()), text_length(location, Schnell())) == (dev, schnell)


@pytest.mark.parametrize("config", [{}, {"model_max_length": NO_LIMIT}, {"model_max_length": None}])
def test_a_tokenizer_without_a_limit_keeps_the_flavours_length(located, config):
    assert text_length(located(config), Schnell()) == 256


def test_a_folder_without_the_file_keeps_the_flavours_length(tmp_path):
    assert text_length(ModelLocation(name="x", identity="x", path=tmp_path), Dev()) == 512


def test_a_damaged_tokenizer_config_is_named(located):
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not valid JSON"):
        text_length(located("{"), Dev())


def test_a_hub_model_has_the_flavours_length_before_and_after_its_download():
    location = ModelLocation(name=Dev.hub_id, identity="x", path=None, revision="0" * 40)
    assert text_length(location, Dev()) == 512


def test_the_random_model_has_one_length_before_and_after_it_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    location = FluxFamily().locate("tiny-random", Dev())
    before = text_length(location, Dev())
    folder = ensure_tiny_random(location.path)
    copied = ModelLocation(name=str(folder), identity="x", path=folder)
    assert before == text_length(location, Dev()) == text_length(copied, Dev()) == 512


@pytest.mark.parametrize(("name", "equal"), [("tiny", True), ("tiny-random", False)])
def test_flavours_share_cached_texts_only_at_the_same_length(name, equal):
    family = FluxFamily()
    dev, schnell = (family.text_identity(family.locate(name, flavour), flavour) for flavour in (Dev(), Schnell()))
    assert (dev == schnell) is equal


def test_the_trained_small_model_has_short_prompts():
    assert text_length(FluxFamily().locate("tiny", Dev()), Dev()) == 64
