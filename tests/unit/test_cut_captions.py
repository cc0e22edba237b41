"""Captions that are longer than the text encoder reads are counted once, in our words."""

import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from conftest import run_in
from difftrain import ModelLocation
from difftrain_flux.family import FluxFamily
from difftrain_flux.flavours import Dev, Schnell
from difftrain_flux.text_length import TOKENIZER

COMMIT = "0" * 40

LONG = "make the sky blue and add a boat, " * 150


@pytest.mark.parametrize(("flavour", "tokens"), [(Dev, 512), (Schnell, 256)])
def test_flux_knows_which_captions_t5_would_cut(flavour, tokens, capfd):
    family = FluxFamily()
    location = family.locate("tiny-random", flavour())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = family.load_text_encoder(location, flavour(), torch.device("cpu"), torch.float32)
        assert encoder.max_tokens == tokens
        assert encoder.cut_captions(["red", LONG, "", "blue " * 20]) == [LONG]
        assert encoder.cut_captions([]) == []
        encoder.encode([LONG])
    assert "longer than" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("flavour", [Dev, Schnell])
def test_check_finds_the_same_without_the_encoder(flavour):
    family = FluxFamily()
    location = family.locate("tiny", flavour())
    encoder = family.load_text_encoder(location, flavour(), torch.device("cpu"), torch.float32)
    captions = ["red", LONG, "", *("a " * words for words in range(1, 600, 7))]
    found = family.long_captions(location, flavour(), captions)
    assert found == encoder.cut_captions(captions)
    assert LONG in found
    assert "red" not in found


def test_a_model_that_is_not_on_this_machine_leaves_captions_unchecked():
    location = ModelLocation(name="someone/model", identity="someone/model", path=None)
    assert FluxFamily().long_captions(location, Dev(), ["red"]) is None


def test_the_tokenizer_of_a_hub_model_is_read_once_it_is_downloaded(tmp_path, monkeypatch):
    tiny = FluxFamily().locate("tiny", Dev())
    snapshot = tmp_path / "models--someone--model" / "snapshots" / COMMIT
    (snapshot / TOKENIZER).parent.mkdir(parents=True)
    shutil.copy(tiny.path / TOKENIZER, snapshot / TOKENIZER)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    location = ModelLocation(name="someone/model", identity="someone/model", path=None, revision=COMMIT)
    assert FluxFamily().long_captions(location, Dev(), ["red", LONG]) == [LONG]
    other = replace(location, revision="1" * 40)
    assert FluxFamily().long_captions(other, Dev(), ["red", LONG]) is None


def test_a_caption_is_cut_only_beyond_the_last_token():
    family = FluxFamily()
    location = family.locate("tiny-random", Schnell())
    encoder = family.load_text_encoder(location, Schnell(), torch.device("cpu"), torch.float32)
    words = 1
    while not encoder.cut_captions(["a " * words]):
        words += 1
    fits, cut = encoder.encode(["a " * (words - 1), "a " * words])
    more = encoder.encode(["a " * words + "boat"])[0]
    assert torch.equal(cut["prompt_embeds"], more["prompt_embeds"])
    assert not torch.equal(fits["prompt_embeds"], cut["prompt_embeds"])


def test_a_run_counts_the_captions_that_are_cut_when_it_encodes_them(tmp_path, edit_pairs):
    edit_pairs(count=3)
    Path(tmp_path / "edits" / "0001.txt").write_text(LONG)
    flags = (*edit_pairs.kontext, "--data_backend_config", "datasets.json", "--max_train_steps", 1)
    ended = run_in(tmp_path, *flags, "--lr_warmup_steps", 0)
    assert ended.status == 0, ended.err
    [note] = re.findall("note: .* captions .*", ended.err)
    assert note.startswith(
        "note: 1 of 4 captions are longer than the 512 tokens that the text encoder reads, and are cut"
    )
    assert "make the sky blue" in note
