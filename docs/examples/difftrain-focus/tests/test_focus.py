"""Tests of the example: the contract of all crop styles, then the points of this one, alone and in a run."""

import json

import pytest
from PIL import Image

from difftrain.testing import check_crop_style, run_command
from difftrain_focus.plugin import Brightest


def with_light_at(box, size=(160, 80)):
    image = Image.new("RGB", size, "navy")
    image.paste((255, 255, 255), box)
    return image


@pytest.mark.parametrize("cells", [2, 8, 64])
def test_it_holds_what_every_crop_style_must(cells):
    check_crop_style(Brightest(brightest_cells=cells))


def test_the_point_is_the_middle_of_the_brightest_part():
    assert Brightest(brightest_cells=4).focus(with_light_at((120, 20, 160, 40))) == (0.875, 0.375)


def test_a_flat_image_has_no_point():
    assert Brightest().focus(Image.new("RGB", (90, 60), "orange")) is None


def test_the_command_crops_around_it(tmp_path):
    (tmp_path / "photos").mkdir()
    with_light_at((140, 0, 160, 20)).save(tmp_path / "photos" / "a.png")
    entry = {"id": "photos", "type": "local", "instance_data_dir": "photos", "caption_strategy": "filename"}
    crop = {"crop": True, "crop_style": "brightest", "brightest_cells": 8, "resolution": 64}
    (tmp_path / "datasets.json").write_text(json.dumps([{**entry, **crop}]))
    ended = run_command(
        tmp_path, model_family="flux", model_flavour="dev", pretrained_model_name_or_path="tiny-random",
        data_backend_config="datasets.json", max_train_steps=1, validation_steps=0, mixed_precision="no",
        aspect_bucket_alignment=16,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "plugin 'focus' of difftrain-focus" in ended.err
    assert "find what to crop in photos 1" in ended.err
