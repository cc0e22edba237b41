"""Hub models that do not fit the run's flavour are recognised by their id or their small files."""

import json
from functools import partial

import huggingface_hub
import pytest
from model_runs import CARD, KONTEXT, check_model


@pytest.fixture
def checked(command, edit_pairs):
    """Check a flavour on a model."""
    return partial(check_model, command, edit_pairs)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Make the hub have every model, with these small files; return the ids that it was asked for."""
    asked = []

    def holds(index, transformer=None, card=""):
        snapshot = tmp_path / "snapshots" / "0123abc"
        (snapshot / "transformer").mkdir(parents=True)
        (snapshot / "model_index.json").write_text(json.dumps(index))
        (snapshot / "README.md").write_text(card)
        if transformer is not None:
            (snapshot / "transformer" / "config.json").write_text(json.dumps(transformer))
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda hub_id, **_: asked.append(hub_id) or str(snapshot)
        )
        return asked

    return holds


GUIDED = {"guidance_embeds": True}


@pytest.mark.parametrize(
    ("flavour", "files", "said"),
    [
        ("kontext", ({"_class_name": "FluxPipeline"}, GUIDED), "the weights of flavour 'dev' or 'krea'"),
        ("kontext", ({"_class_name": "FluxPipeline"},), "the weights of flavour 'dev' or 'schnell' or 'krea'"),
        ("dev", ({"_class_name": "FluxPipeline"}, {"guidance_embeds": False}), "the weights of flavour 'schnell'"),
        ("dev", ({"_class_name": "FluxFillPipeline"},), "hub model 'someone/model' is FLUX.1 Fill"),
        ("dev", ({"_class_name": "StableDiffusion3Pipeline"},), "is a StableDiffusion3Pipeline"),
    ],
)
def test_other_weights_of_the_hub_are_named_before_they_are_downloaded(checked, hub, flavour, files, said):
    hub(*files)
    ended = checked(flavour, "someone/model")
    assert ended.status == 2
    assert said in ended.err


def test_a_fine_tune_of_the_hub_is_trained_with_its_flavour(checked, hub):
    hub({"_class_name": "FluxKontextPipeline"}, GUIDED, CARD.format(f" {KONTEXT}"))
    ended = checked("kontext", "someone/model")
    assert ended.status == 0, ended.err
    assert "note: model" not in ended.out


@pytest.mark.parametrize("name", [KONTEXT.lower(), f"https://huggingface.co/{KONTEXT}", f"{KONTEXT}/", None])
def test_the_flavours_own_weights_are_asked_for_in_the_hubs_spelling(checked, hub, name):
    asked = hub({"_class_name": "FluxPipeline"})  # whatever the files say: this id is the flavour's own
    ended = checked("kontext", name)
    assert ended.status == 0, ended.err
    assert asked == [KONTEXT]
    assert f"model: flux kontext, {KONTEXT} (weights of kontext)" in ended.out


@pytest.mark.parametrize("name", ["FLUX.1-Fill-dev", "FLUX.1-Redux-dev", "FLUX.2-dev"])
def test_a_sibling_without_a_flavour_is_refused_before_its_licence_is_asked_for(checked, name):
    ended = checked("kontext", f"https://huggingface.co/black-forest-labs/{name}")
    assert ended.status == 2
    assert f"hub model 'black-forest-labs/{name}' is {name.removesuffix('-dev').replace('-', ' ')}," in ended.err
