"""What one validation draws, writes and measures; the model is a painter of plain grey."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from data_plans import SilentReporter, new_image
from PIL import Image

from difftrain.data.files.local_image import LocalImage
from difftrain.model.low_rank.lora import Lora
from difftrain.types import Geometry, ImageRecord, PlacedImage
from difftrain.validation.drawn_files import open_drawn
from difftrain.validation.scenes import Scene
from difftrain.validation.sheet import CELL, GAP
from difftrain.validation.validator import Validator

SIZE = (32, 32)


def grey(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (value, value, value)).save(path)
    record = ImageRecord(
        dataset_id="d", key=path.stem, image=LocalImage.at(path), width=32, height=32, content_hash=path.stem
    )
    return PlacedImage(record=record, geometry=Geometry(resize=SIZE, crop=(0, 0), bucket=SIZE))


class ListeningReporter(SilentReporter):
    """Keeps all messages."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


class Painter:
    """Paints the next grey for each request."""

    def __init__(self, *greys):
        self.greys = list(greys)
        self.seeds = []

    def __call__(self, request):
        self.seeds.append(request.seed)
        value = self.greys[len(self.seeds) - 1]
        return Image.new("RGB", (request.width, request.height), (value, value, value))


def state(step, **changes):
    values = {
        "validation_negative_prompt": "", "validation_guidance": None, "validation_guidance_real": 1.0,
        "validation_num_inference_steps": 4, "validation_seed": 7, "seed": 1, "lora_type": "standard", **changes,
    }  # fmt: skip
    flavour = SimpleNamespace(default_guidance=2.5, pipeline_references=1)
    plan = SimpleNamespace(config=SimpleNamespace(**values), flavour=flavour, adapter=Lora())
    return SimpleNamespace(
        step=step, plan=plan, bare_denoiser=torch.nn.Identity(), evaluating=nullcontext, uncompiled=nullcontext
    )


@pytest.fixture
def validate(tmp_path):
    """Draw at a step; every call uses a new validator, as after a resume."""
    target, reference = grey(tmp_path / "target.png", 100), grey(tmp_path / "reference.png", 151)

    def validated(step, *greys, seeds=1, references=(reference,), model="model", **options):
        scene = Scene(name="scene", prompt="edit", references=references, target=target, size=SIZE)
        validator = Validator(
            scenes=[scene],
            fixed=[],
            held_out=True,
            seeds=seeds,
            model_identity=model,
            reader=SimpleNamespace(text=lambda item: {}),
            sampler=Painter(*greys),
            folder=tmp_path / "validation",
            reporter=ListeningReporter(),
        )
        return validator, validator.draw(state(step, **options))

    return validated


def columns(drawn):
    with Image.open(drawn.files["sheet"]) as sheet:
        return sheet.width // (CELL + GAP)


def test_every_seed_has_its_file_and_its_seed(validate):
    validator, drawn = validate(3, 100, 101, 102, seeds=3)
    assert list(drawn.files) == ["scene", "scene-seed-2", "scene-seed-3", "sheet"]
    assert all(path.is_file() for path in drawn.files.values())
    assert validator.sampler.seeds == [7, 8, 9]


def test_psnr_is_the_mean_over_the_seeds_and_that_of_the_reference_beside_it(validate):
    _, drawn = validate(3, 151, 49, 49, 100 + 26, seeds=2)  # each is 0.2 away: 13.979 dB
    assert drawn.scores.images["scene"] == pytest.approx(13.9794, abs=1e-4)
    assert drawn.scores.references["scene"] == pytest.approx(13.9794, abs=1e-4)


def test_a_reference_of_another_size_is_not_measured(validate, tmp_path):
    new_image(tmp_path / "wide.png", (64, 32))
    record = ImageRecord(
        dataset_id="d", key="wide", image=LocalImage.at(tmp_path / "wide.png"), width=64, height=32, content_hash="wide"
    )
    wide = PlacedImage(record=record, geometry=Geometry(resize=(64, 32), crop=(0, 0), bucket=(64, 32)))
    _, drawn = validate(3, 100, references=(wide,))
    assert drawn.scores.references == {}


def test_without_images_of_the_start_there_is_no_base_column(validate):
    _, drawn = validate(3, 100)
    assert columns(drawn) == 3


def test_images_of_the_start_have_no_base_column_themselves(validate):
    validate(0, 0)
    _, again = validate(0, 0)
    assert columns(again) == 3


def test_base_column_shows_the_images_of_the_start_also_after_a_resume(validate):
    validate(0, 255, 0, seeds=2)
    _, drawn = validate(3, 100, 100, seeds=2)
    assert columns(drawn) == 4
    with Image.open(drawn.files["sheet"]) as sheet:
        assert sheet.getpixel((GAP + CELL + GAP + CELL // 2, sheet.height // 2)) == (255, 255, 255)


@pytest.mark.parametrize("changed", [{"validation_seed": 8}, {"validation_num_inference_steps": 5}, {"seed": 2}])
def test_images_of_the_start_that_were_drawn_differently_are_no_base(validate, changed):
    validate(0, 255)
    _, drawn = validate(3, 100, **changed)
    assert columns(drawn) == 3


@pytest.mark.parametrize("changed", [{"validation_seed": 8}, {"model": "the same in float32"}])
def test_a_base_column_that_goes_because_images_are_drawn_differently_is_reported_once(validate, changed):
    validate(0, 255)
    validator, _ = validate(3, 100, 100, **changed)
    validator.draw(state(6, **{key: value for key, value in changed.items() if key != "model"}))
    (said,) = validator.reporter.said
    assert "1 of 1 images of step 0" in said
    assert "base" in said


def test_nothing_is_said_of_a_base_column_that_is_there_or_never_was(validate):
    never, _ = validate(3, 100)
    validate(0, 255)
    there, _ = validate(3, 100)
    assert never.reporter.said == there.reporter.said == []


def test_half_an_image_of_the_start_is_no_base(validate):
    _, start = validate(0, 255)
    whole = start.files["scene"].read_bytes()
    start.files["scene"].write_bytes(whole[: len(whole) // 2])
    _, drawn = validate(3, 100)
    assert columns(drawn) == 3


def test_an_image_without_a_mark_is_nobodys(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", SIZE).save(path)
    assert open_drawn(path, "identity") is None
