"""Options of validation change the stock pipeline's arguments and what the run measures."""

import json
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from wiring import Trials, Watched

from conftest import EditPairs, read_metrics
from difftrain.validation import validator


@dataclass(repr=False)
class Drawing:
    """A run, and the arguments of its pipeline."""

    run: Watched
    asked: list = field(default_factory=list)

    def values(self, name):
        return [arguments[name] for arguments in self.asked]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train two steps on four pairs, drawn at the end; return a :class:`Drawing` for the options of a validation."""
    folder = tmp_path_factory.mktemp("validation")
    pairs = EditPairs(folder)
    flags = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True))
    flags |= {
        "--data_backend_config": pairs(count=4, edit_sizes=[(96, 64)]), "--max_train_steps": 2,
        "--validation_steps": 2, "--num_eval_images": 1, "--validation_resolution": 64,
    }  # fmt: skip
    trials = Trials(folder, tuple(part for pair in flags.items() for part in pair))
    done = {}

    def draw(**options):
        key = repr(options)
        if key not in done:
            asked = []

            def drawn(pipeline, **arguments):
                arguments["seed"] = arguments["generator"].initial_seed()
                asked.append(arguments | {"training": pipeline.transformer.training})
                image = Image.new("RGB", (arguments["width"], arguments["height"]))
                return type("Output", (), {"images": [image]})()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FluxKontextPipeline, "__call__", drawn)
                done[key] = Drawing(trials(**options), asked)
        return done[key]

    return draw


@pytest.fixture(scope="module")
def steered(train):
    """Set every option of an image at once."""
    return train(
        validation_guidance=4.5, validation_guidance_real=2.5, validation_negative_prompt="blurry",
        validation_num_inference_steps=7, validation_seed=11, validation_num_seeds=3,
    )  # fmt: skip


def test_an_image_has_the_samples_own_prompt_reference_and_aspect(train):
    drawing = train()
    (asked,) = drawing.asked
    assert (asked["width"], asked["height"]) == (80, 48)
    assert asked["image"].size == (80, 48)
    fed = {fed.captions[0]: fed.input.prompt_embeds for fed in train(max_train_steps=4).run.fed}
    assert any(torch.equal(asked["prompt_embeds"], own) for own in fed.values())


def test_defaults_are_the_flavours_guidance_and_28_steps_of_seed_42(train):
    (asked,) = train().asked
    assert (asked["guidance_scale"], asked["true_cfg_scale"]) == (2.5, 1.0)
    assert (asked["num_inference_steps"], asked["seed"]) == (28, 42)
    assert "negative_prompt_embeds" not in asked


def test_guidance_steps_and_seed_reach_the_pipeline(steered):
    assert set(steered.values("guidance_scale")) == {4.5}
    assert set(steered.values("true_cfg_scale")) == {2.5}
    assert set(steered.values("num_inference_steps")) == {7}


def test_every_seed_in_a_row_draws_its_image(steered):
    assert steered.values("seed") == [11, 12, 13]


def test_the_negative_prompt_is_that_of_the_config(steered, train):
    plain = train(validation_guidance_real=2.5)
    (empty,) = plain.values("negative_prompt_embeds")
    assert not torch.equal(steered.asked[0]["negative_prompt_embeds"], empty)
    prompted = train(validation_prompt="blurry")
    own = prompted.asked[-1]["prompt_embeds"]
    torch.testing.assert_close(steered.asked[0]["negative_prompt_embeds"], own)


def test_prompts_are_drawn_beside_the_samples(train):
    folder = train().run.folder
    (folder / "prompts.json").write_text(json.dumps({"a": "to night", "b": "to day"}))
    drawing = train(validation_prompt="to winter", validation_prompt_library="prompts.json", num_eval_images=2)
    texts = [embeds.sum().item() for embeds in drawing.values("prompt_embeds")]
    assert len(set(texts)) == 5
    names = {path.stem for path in (drawing.run.output / "validation" / "step-000002").glob("*.png")}
    assert {"a", "b"} < names


def test_num_eval_images_is_how_many_samples_are_drawn(train):
    assert len(train(num_eval_images=3).asked) == 3
    assert train(num_eval_images=0).asked == []


@pytest.mark.parametrize(("asked_for", "size"), [("128x128", (160, 96)), ("96", (128, 80))])
def test_validation_resolution_gives_the_area(train, asked_for, size):
    (asked,) = train(validation_resolution=asked_for).asked
    assert (asked["width"], asked["height"]) == size
    assert asked["max_area"] == size[0] * size[1]


def test_images_are_drawn_when_they_are_due(train):
    drawing = train(validation_steps=2, validation_on_startup="true", max_train_steps=5)
    measured = [line for line in read_metrics(drawing.run.output) if "fixed_loss" in line]
    assert [line["step"] for line in measured] == [0, 2, 4, 5]
    assert len(drawing.asked) == 4
    assert Counter(drawing.values("seed")) == {42: 4}
    without = train(validation_steps=0)
    assert without.asked == []
    assert not any("fixed_loss" in line for line in read_metrics(without.run.output))


def test_drawing_and_measuring_change_nothing_of_the_training(train):
    often = train(validation_steps=1, validation_on_startup="true", lora_dropout=0.5)
    never = train(validation_steps=0, lora_dropout=0.5)
    assert torch.equal(often.run.weights[-1], never.run.weights[-1])
    assert all(fed.training for fed in often.run.fed)
    assert not any(often.values("training"))


def test_the_fixed_loss_is_measured_without_dropout(train, monkeypatch):
    in_training = []
    loss_at = validator.loss_at

    def watched(run, denoiser, *rest):
        in_training.append(any(part.training for part in denoiser.modules()))
        return loss_at(run, denoiser, *rest)

    monkeypatch.setattr(validator, "loss_at", watched)
    train(validation_on_startup="true", lora_dropout=0.25)
    assert in_training == [False] * (2 * 4 * len(validator.FIXED_SIGMAS))  # two validations of four samples


def test_the_adapter_is_in_what_is_measured(train):
    lines = read_metrics(train(validation_on_startup="true", learning_rate=0.05).run.output)
    first, last = (line["fixed_loss"] for line in lines if "fixed_loss" in line)
    assert first != pytest.approx(last, rel=1e-4)


def test_samples_that_only_regularise_or_are_turned_away_from_are_neither_drawn_nor_measured(train):
    common = {"instance_data_dir": "edits", "resolution": 64}
    sets = [
        {**common, "id": "a guard", "is_regularisation_data": True},
        {**common, "id": "away", "slider_strength": -1},
        {**common, "id": "edits"},
    ]
    folder = train().run.folder
    (folder / "sets.json").write_text(json.dumps(sets))
    drawing = train(data_backend_config="sets.json", num_eval_images=3)
    drawn = {path.stem for path in (drawing.run.output / "validation" / "step-000002").glob("*.png")}
    assert drawn == {"sheet", "edits-0000", "edits-0001", "edits-0002"}


def test_where_all_samples_are_turned_away_from_they_are_drawn(train):
    folder = train().run.folder
    entry = {"id": "away", "instance_data_dir": "edits", "resolution": 64, "slider_strength": -1}
    (folder / "away.json").write_text(json.dumps([entry]))
    drawing = train(data_backend_config="away.json")
    assert (drawing.run.output / "validation" / "step-000002" / "away-0000.png").is_file()
