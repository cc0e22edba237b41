"""Crops around what a style of a plugin finds: placed there, found once, remembered by content, failures named."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from data_plans import SilentReporter, caption, data_plan, generator_plan, reference_set, rules, target_set
from PIL import Image

from difftrain import CropStyle, DataError, PluginError
from difftrain.data.samples import remembered
from difftrain.data.samples.new_crops import NewCrops
from difftrain.data.samples.prepare_samples import audit_samples, pair_samples, prepare_samples
from difftrain.data.scanning import focus_points
from difftrain.plugins.discovery import load_plugins
from difftrain_conditioning_generators.superresolution import Superresolution
from difftrain_flux_kontext.pairing import ReferenceLoose

WIDE = (192, 64)
SQUARE = {"resolution": 64, "crop": True, "crop_aspect": "square", "crop_style": "focus"}
CROPS = rules(**SQUARE)


class Spot(CropStyle):
    """The white spot of an image; none in a black one."""

    name: ClassVar[str] = "spot"
    asked: ClassVar[list[str]] = []

    threshold: int = 128
    """Grey level from which on a pixel is part of the spot."""

    def focus(self, image):
        self.asked.append(threading.current_thread().name)
        box = image.convert("L").point(lambda value: 255 * (value >= self.threshold)).getbbox()
        if box is None:
            return None
        return (box[0] + box[2]) / 2 / image.width, (box[1] + box[3]) / 2 / image.height


class Finds(CropStyle):
    """Returns what it is told to, or raises."""

    name: ClassVar[str] = "finds"
    answer: ClassVar[object] = None

    def focus(self, image):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


SPOTS_FILE = """
from difftrain import CropStyle, hookimpl


class Spots(CropStyle):
    name = "spots"

    def focus(self, image):
        return 0.5, 0.5


@hookimpl
def difftrain_crop_styles():
    return (Spots,)
"""


@pytest.fixture(autouse=True)
def _nothing_asked():
    Spot.asked.clear()


def spotted(path, left, *, size=WIDE):
    """Write a black image with a white spot of 16 pixels; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    if left is not None:
        image.paste((255, 255, 255), (left, 0, left + 16, 16))
    image.save(path)
    return path


SPOTS = {"a": 0, "b": 60, "c": 170, "d": None}
"""Left edges of the spots in wide images."""
LEFTS = {"a": 0, "b": 36, "c": 128, "d": 64}
"""Where crops of 64 pixels then begin."""


@pytest.fixture
def edits(tmp_path):
    """Write edits with spots; return their set."""
    for name, left in SPOTS.items():
        caption(spotted(tmp_path / "edits" / f"{name}.png", left), name)
    return replace(target_set(tmp_path, own_rules=CROPS), crop_style=Spot())


def prepared(plan):
    reporter = SilentReporter()
    return prepare_samples(plan, reporter=reporter), reporter.phases


def lefts(samples):
    return {sample.target.record.key: sample.target.geometry.crop[0] for sample in samples}


def reference_lefts(samples):
    return {one.target.record.key: one.choices[0].references[0].geometry.crop[0] for one in samples}


def test_crops_lie_around_what_the_style_finds(tmp_path, edits):
    data, phases = prepared(data_plan(tmp_path, edits))
    assert lefts(data.samples) == LEFTS
    assert {sample.target.geometry.bucket for sample in data.samples} == {(64, 64)}
    assert phases["find what to crop in edits"] == 4


def test_the_style_sees_upright_images_in_their_own_size(tmp_path):
    path = tmp_path / "edits" / "a.jpg"
    path.parent.mkdir()
    turned = Image.new("RGB", (64, 192))
    turned.paste((255, 255, 255), (0, 176, 64, 192))
    exif = Image.Exif()
    exif[0x0112] = 8  # upright after a quarter turn to the left: the spot is then at the right
    turned.save(path, exif=exif, quality=95)
    caption(path, "a")
    data, _ = prepared(data_plan(tmp_path, replace(target_set(tmp_path, own_rules=CROPS), crop_style=Spot())))
    assert lefts(data.samples) == {"a": 128}


def test_images_are_looked_at_in_threads(tmp_path, edits):
    prepared(data_plan(tmp_path, edits))
    assert threading.main_thread().name not in Spot.asked
    assert len(Spot.asked) == 4


# what is remembered


def without_memory_of_samples(plan):
    shutil.rmtree(plan.index_path.parent / remembered.FOLDER)


def test_a_restart_opens_no_image(tmp_path, edits, monkeypatch):
    plan = data_plan(tmp_path, edits)
    first, _ = prepared(plan)
    monkeypatch.setattr(focus_points, "open_upright", lambda source: pytest.fail(f"opened {source.place}"))
    again, _ = prepared(plan)
    assert list(again.samples) == list(first.samples)
    without_memory_of_samples(plan)
    indexed, phases = prepared(plan)
    assert list(indexed.samples) == list(first.samples)
    assert "find what to crop in edits" not in phases
    assert "scan edits" in phases


def test_an_image_is_known_by_its_content_in_any_place_and_set(tmp_path, edits):
    prepared(data_plan(tmp_path, edits))
    (tmp_path / "edits").rename(tmp_path / "moved")
    moved = replace(target_set(tmp_path, "moved", own_rules=CROPS), crop_style=Spot())
    data, _ = prepared(data_plan(tmp_path, moved))
    assert lefts(data.samples) == LEFTS
    assert len(Spot.asked) == 4


def test_only_new_content_is_looked_at(tmp_path, edits):
    plan = data_plan(tmp_path, edits)
    prepared(plan)
    spotted(tmp_path / "edits" / "a.png", 100)
    data, phases = prepared(plan)
    assert lefts(data.samples) == {**LEFTS, "a": 76}
    assert phases["find what to crop in edits"] == 1


def test_other_options_ask_again_and_both_are_remembered(tmp_path, edits):
    plan = data_plan(tmp_path, edits)
    prepared(plan)
    blind = data_plan(tmp_path, replace(edits, crop_style=Spot(threshold=256)))
    data, phases = prepared(blind)
    assert phases["find what to crop in edits"] == 4
    assert set(lefts(data.samples).values()) == {64}
    assert lefts(prepared(plan)[0].samples) == LEFTS
    assert len(Spot.asked) == 8


def test_another_version_or_package_asks_again(tmp_path, edits, monkeypatch):
    plan = data_plan(tmp_path, edits)
    prepared(plan)
    for fact, value in (("version", 2), ("__module__", "another_package.plugin")):
        monkeypatch.setattr(Spot, fact, value)
        without_memory_of_samples(plan)
        assert prepared(plan)[1]["find what to crop in edits"] == 4, fact


def test_the_code_of_a_style_is_among_what_samples_depend_on(tmp_path, edits):
    plan = data_plan(tmp_path, edits)
    assert set(remembered._code(plan)) - set(remembered._code(data_plan(tmp_path, target_set(tmp_path))))


def test_a_changed_plugin_file_scans_again_but_not_what_lies_below_its_folder(tmp_path, edits):
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    file = project / "spots.py"
    file.write_text(SPOTS_FILE)
    style = load_plugins(files=[file]).registry.find("crop style", "spots")
    plan = data_plan(tmp_path, replace(edits, crop_style=style()))
    assert "scan edits" in prepared(plan)[1]
    (project / "data" / "script.py").write_text("1")
    assert "scan edits" not in prepared(plan)[1]
    (project / "helper.py").write_text("1")
    assert "scan edits" in prepared(plan)[1]
    file.write_text(f"{SPOTS_FILE}\n# changed")
    assert "scan edits" in prepared(plan)[1]
    assert "scan edits" not in prepared(plan)[1]


@pytest.mark.parametrize("at_once", [2, 256])
@pytest.mark.parametrize(("error", "raised"), [(RuntimeError, PluginError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_what_was_found_before_an_end_is_kept(tmp_path, edits, monkeypatch, at_once, error, raised):
    monkeypatch.setattr(focus_points, "_AT_ONCE", at_once)
    plan, focus = data_plan(tmp_path, edits), Spot.focus

    def fail_at_the_black_one(self, image):
        if image.getbbox() is None:  # the last of four
            raise error("out of luck")
        return focus(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(Spot, "focus", fail_at_the_black_one)
        with pytest.raises(raised, match="out of luck"):
            prepared(plan)
    assert prepared(plan)[1]["find what to crop in edits"] == 1


def test_a_damaged_point_is_found_again(tmp_path, edits):
    plan = data_plan(tmp_path, edits)
    prepared(plan)
    with sqlite3.connect(plan.index_path) as index:
        index.execute("UPDATE focus_points SET x = 0.5 WHERE x IS NOT NULL")
    index.close()
    without_memory_of_samples(plan)
    assert lefts(prepared(plan)[0].samples) == LEFTS


def test_planning_finds_the_same_crops_and_writes_nothing(tmp_path, edits):
    plan = data_plan(tmp_path, edits)
    assert lefts(pair_samples(plan, reporter=SilentReporter()).samples) == LEFTS
    assert not plan.index_path.exists()


# references


@pytest.fixture
def spotted_references(tmp_path):
    for name in SPOTS:
        spotted(tmp_path / "references" / f"{name}.png", 176 if name == "a" else 0)


@pytest.mark.usefixtures("spotted_references")
def test_strict_references_follow_the_target_and_are_not_looked_at(tmp_path, edits):
    references = replace(reference_set(tmp_path, own_rules=CROPS), crop_style=Spot())
    data, phases = prepared(data_plan(tmp_path, replace(edits, references=("references",)), references))
    assert lefts(data.samples) == reference_lefts(data.samples) == LEFTS
    assert "find what to crop in references" not in phases


@pytest.mark.usefixtures("spotted_references")
@pytest.mark.parametrize(
    ("pairing", "style", "left"),
    [
        (ReferenceLoose(), Spot(), {"a": 128, "b": 0, "c": 0, "d": 0}),
        (ReferenceLoose(), None, dict.fromkeys("abcd", 64)),
        (ReferenceLoose(reference_resolution="same"), Spot(), dict.fromkeys("abcd", 64)),
        (ReferenceLoose(reference_shapes=1), Spot(), dict.fromkeys("abcd", 64)),
    ],
)
def test_loose_references_have_the_style_of_their_own_entry(tmp_path, edits, pairing, style, left):
    own = CROPS if style else replace(CROPS, crop_style="center")
    references = replace(reference_set(tmp_path, pairing=pairing, own_rules=own), crop_style=style)
    data, phases = prepared(data_plan(tmp_path, replace(edits, references=("references",)), references))
    assert lefts(data.samples) == LEFTS
    assert reference_lefts(data.samples) == left
    # of its two contents, one is that of an edit
    assert phases.get("find what to crop in references") == (1 if len(set(left.values())) > 1 else None)


@pytest.mark.parametrize("on_demand", [False, True])
def test_made_references_are_cropped_where_their_target_is(tmp_path, edits, on_demand):
    made = replace(generator_plan(tmp_path, Superresolution(), on_demand=on_demand), pairing=ReferenceLoose())
    data, _ = prepared(data_plan(tmp_path, replace(edits, generators=(made,))))
    assert reference_lefts(data.samples) == LEFTS


@pytest.mark.usefixtures("spotted_references")
def test_shapes_drawn_again_each_epoch_stay_around_the_focus(tmp_path):
    for name, left in SPOTS.items():
        caption(spotted(tmp_path / "edits" / f"{name}.png", left), name)
    drawn = rules(**{**SQUARE, "crop_aspect": "random", "crop_aspect_buckets": (0.5, 1.0), "resolution_type": "pixel"})
    edits = target_set(tmp_path, references=("references",), own_rules=drawn, vae_cache_clear_each_epoch=True)
    references = reference_set(tmp_path, pairing=ReferenceLoose(), own_rules=CROPS)
    plan = data_plan(tmp_path, replace(edits, crop_style=Spot()), replace(references, crop_style=Spot()))
    for data in (prepared(plan)[0], prepared(plan)[0]):  # the second is remembered
        again = [NewCrops(plan)(sample, epoch) for sample in data.samples for epoch in range(1, 9)]
        geometries = {one.target.geometry for one in again if one.target.record.key == "c"}
        assert len(geometries) == 2
        ends = {round((one.crop[0] + one.bucket[0]) / one.resize[0], 2) for one in geometries}
        assert ends == {1.0}
        assert reference_lefts(again) == {"a": 128, "b": 0, "c": 0, "d": 0}


# failures


@pytest.mark.parametrize(
    "answer", [(340, 120), (0.5, float("nan")), (-0.1, 0.5), 0.5, (0.5,), (0.1, 0.2, 0.3), "no", ("0", "1"), [None] * 2]
)
def test_a_point_that_is_none_is_an_error_naming_the_image(tmp_path, edits, monkeypatch, answer):
    monkeypatch.setattr(Finds, "answer", answer)
    with pytest.raises(PluginError) as caught:
        prepared(data_plan(tmp_path, replace(edits, crop_style=Finds())))
    text = str(caught.value)
    assert text.startswith(f"crop style 'finds' returned {answer!r} for {tmp_path / 'edits'}")
    assert "hint: focus() must return (x, y) in shares of width and height, from 0 to 1, or None" in text


@pytest.mark.parametrize("answer", [(0, 1), [0.25, 0.75], (np.float32(0.5), np.float64(1))])
def test_whole_numbers_lists_and_numpys_numbers_are_points(tmp_path, edits, monkeypatch, answer):
    monkeypatch.setattr(Finds, "answer", answer)
    data, _ = prepared(data_plan(tmp_path, replace(edits, crop_style=Finds())))
    focus = data.samples[0].target.record.focus
    assert focus == tuple(map(float, answer))
    assert set(map(type, focus)) == {float}


@pytest.mark.parametrize("error", [RuntimeError("no detector"), DataError("strange"), KeyError("face")])
def test_a_style_that_raises_is_an_error_naming_the_image(tmp_path, edits, monkeypatch, error):
    monkeypatch.setattr(Finds, "answer", error)
    with pytest.raises(PluginError) as caught:
        prepared(data_plan(tmp_path, replace(edits, crop_style=Finds())))
    image = tmp_path / "edits" / "a.png"
    assert str(caught.value).startswith(f"crop style 'finds' failed on {image}: {type(error).__name__}: ")


def test_images_that_cannot_be_decoded_are_reported_together(tmp_path, edits, monkeypatch):
    for name in "ab":
        path = tmp_path / "edits" / f"{name}.png"
        data = bytearray(path.read_bytes())
        place = data.index(b"IDAT") + 6
        data[place : place + 8] = b"\xff" * 8
        path.write_bytes(data)
    plan = data_plan(tmp_path, edits)
    with pytest.raises(DataError) as caught:
        prepared(plan)
    assert [name for name in SPOTS if f"{name}.png: cannot be read as an image" in str(caught.value)] == ["a", "b"]
    found = audit_samples(plan, reporter=SilentReporter())
    assert lefts(found.samples) == {**LEFTS, "a": 64, "b": 64}
