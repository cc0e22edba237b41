"""Extras of samples: who asks for them, how they are stacked, and messages for plugins that return nonsense."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from data_plans import data_plan, target_set

from difftrain.config.options import Options
from difftrain.data.files.local_image import LocalImage
from difftrain.data.streaming.sample_extras import SampleExtras, stack_extras
from difftrain.data.streaming.stream import _pinned
from difftrain.errors import DataError, PluginError
from difftrain.plugins.registry import Registry, check_provided
from difftrain.steps.losses import MeanSquaredError
from difftrain.testing.tiny_family import TinyFamily
from difftrain.types import Batch, Geometry, ImageRecord, PlacedImage, Sample


class Level(Options):
    """One number."""

    level: int = 3
    """Any."""


class AskingFamily(TinyFamily):
    name: ClassVar[str] = "asking"
    dataset_options: ClassVar[type[Options]] = Level

    def extras(self, sample, options):
        return {"level": torch.tensor(options.level)}


class Giving(MeanSquaredError):
    """Returns what a test tells it to."""

    name: ClassVar[str] = "giving"
    dataset_options: ClassVar[type[Options]] = Level
    given: ClassVar[object] = {}

    def extras(self, sample, options):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def sample(key="a"):
    record = ImageRecord(
        dataset_id="edits", key=key, image=LocalImage.at(Path(f"{key}.png")), width=8, height=8, content_hash=key
    )
    placed = PlacedImage(record=record, geometry=Geometry(resize=(8, 8), crop=(0, 0), bucket=(8, 8)))
    return Sample(dataset_id="edits", target=placed, captions=("",))


def extras(tmp_path, family, loss, **options):
    dataset = target_set(tmp_path)
    return SampleExtras(data_plan(tmp_path, type(dataset)(**{**vars(dataset), **options})), family, loss)


def test_whoever_asks_nothing_is_not_called(tmp_path):
    class Refusing(MeanSquaredError):
        def extras(self, sample, options):
            raise AssertionError

    assert extras(tmp_path, TinyFamily(), Refusing()).of(sample()) == {}


def test_family_and_loss_each_get_their_own_options(tmp_path, monkeypatch):
    monkeypatch.setattr(Giving, "given", {"other": torch.tensor(True)})
    found = extras(tmp_path, AskingFamily(), Giving(), family_options=Level(level=7), loss_options=Level()).of(sample())
    assert {name: tensor.item() for name, tensor in found.items()} == {"level": 7, "other": True}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.tensor(1), torch.int64),
        (torch.tensor(1, dtype=torch.uint8), torch.uint8),
        (torch.tensor(True), torch.bool),
        (torch.tensor(1.5, dtype=torch.float64), torch.float32),
        (torch.tensor(1.5, dtype=torch.bfloat16), torch.float32),
    ],
)
def test_whole_numbers_and_truths_keep_their_format_and_the_rest_is_float32(tmp_path, monkeypatch, given, kept):
    monkeypatch.setattr(Giving, "given", {"x": given})
    found = extras(tmp_path, TinyFamily(), Giving(), loss_options=Level()).of(sample())
    stacked = stack_extras([found, found], ["edits/a", "edits/b"])
    assert stacked["x"].dtype == kept
    assert stacked["x"].shape == (2,)
    batch = Batch(latents=torch.zeros(2, 1), references=[], text={}, extras=stacked)
    assert batch.to("cpu", torch.bfloat16).extras["x"].dtype == kept


def test_a_pinned_batch_has_its_extras(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    batch = _pinned(Batch(latents=torch.zeros(1), references=[], text={}, extras={"x": torch.zeros(1)}))
    assert batch.extras["x"].tolist() == [1.0]


def test_a_name_that_family_and_loss_give_is_an_error_naming_both(tmp_path, monkeypatch):
    monkeypatch.setattr(Giving, "given", {"level": torch.tensor(1)})
    asked = extras(tmp_path, AskingFamily(), Giving(), family_options=Level(), loss_options=Level())
    with pytest.raises(PluginError, match="model family 'asking' and loss 'giving' both give 'level'"):
        asked.check([sample()])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (ValueError("no mask"), r"loss 'giving': extras\(\) failed on edits/a: ValueError: no mask"),
        (None, "must return a mapping of tensors by name, got NoneType"),
        ({"x": 1.0}, "got float for 'x' of edits/a"),
    ],
)
def test_a_plugin_that_gives_nonsense_is_named(tmp_path, monkeypatch, given, says):
    monkeypatch.setattr(Giving, "given", given)
    with pytest.raises(PluginError, match=says):
        extras(tmp_path, TinyFamily(), Giving(), loss_options=Level()).check([sample()])


def test_an_error_of_the_users_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Giving, "given", DataError("masks/a.png does not exist"))
    with pytest.raises(DataError, match="does not exist") as caught:
        extras(tmp_path, TinyFamily(), Giving(), loss_options=Level()).of(sample())
    assert not isinstance(caught.value, PluginError)


@pytest.mark.parametrize("other", [{}, {"x": torch.zeros(3)}, {"x": torch.zeros(2, dtype=torch.int64)}])
def test_extras_that_cannot_be_stacked_name_two_samples(other):
    with pytest.raises(PluginError, match="extras of edits/a and edits/b cannot be stacked into one batch"):
        stack_extras([{"x": torch.zeros(2)}, other], ["edits/a", "edits/b"])


def test_the_identity_follows_the_content(tmp_path, monkeypatch):
    asked = extras(tmp_path, TinyFamily(), Giving(), loss_options=Level())
    seen = set()
    for given in ({}, {"x": torch.zeros(2)}, {"x": torch.ones(2)}, {"y": torch.ones(2)}, {"x": torch.ones(1, 2)}):
        monkeypatch.setattr(Giving, "given", given)
        assert asked.identity(sample()) == asked.identity(sample())
        seen.add(asked.identity(sample()))
    assert len(seen) == 5
    monkeypatch.setattr(Giving, "given", {})
    assert asked.identity(sample()) == ""


def test_their_keys_are_keys_of_a_dataset_entry():
    registry = Registry()
    for kind, provided in (("loss", MeanSquaredError), ("loss", Giving), ("family", AskingFamily)):
        registry.add(kind, provided, "test 1.0")
    assert registry.dataset_option_classes() == (Level,)


def test_dataset_options_that_are_no_options_class_are_refused():
    class Wrong(MeanSquaredError):
        name: ClassVar[str] = "wrong"
        dataset_options: ClassVar[object] = {"level": 3}

    with pytest.raises(PluginError, match=r"dataset_options of .*Wrong must be a subclass of difftrain\.Options"):
        check_provided("loss", Wrong)
