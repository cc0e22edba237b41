"""PSNR as defined, and how a validation uses it."""

import json

import numpy as np
import pytest
from PIL import Image

from difftrain.validation.psnr import HIGHEST, Scores, psnr


def grey(value, size=(8, 8)):
    return Image.new("RGB", size, (value, value, value))


# Golden values: 10 log10(1 / MSE); 51 of 255 is 0.2, 255 of 255 is 1.
@pytest.mark.parametrize(
    ("image", "target", "expected"),
    [
        (grey(0), grey(51), 13.9794),  # MSE 0.04
        (grey(0), grey(255), 0.0),  # MSE 1
        (grey(100), Image.new("RGB", (8, 8), (151, 100, 100)), 18.7506),  # MSE 0.04 / 3
        (grey(0), grey(1), 48.1308),  # MSE 1 / 255^2
    ],
)
def test_psnr_is_that_of_the_mean_squared_error_over_rgb(image, target, expected):
    assert psnr(image, target) == pytest.approx(expected, abs=1e-4)
    assert psnr(target, image) == psnr(image, target)


def test_psnr_of_noise_is_that_of_its_own_error():
    draw = np.random.default_rng(0)
    first, second = (draw.integers(0, 256, (16, 24, 3), dtype=np.uint8) for _ in range(2))
    error = np.mean((first / 255.0 - second / 255.0) ** 2)
    assert psnr(Image.fromarray(first), Image.fromarray(second)) == pytest.approx(-10 * np.log10(error))


def test_equal_images_have_the_highest_value_and_not_infinity():
    assert psnr(grey(7), grey(7)) == HIGHEST


def test_target_of_another_size_is_brought_to_the_images_size():
    assert psnr(grey(0, (8, 8)), grey(51, (20, 12))) == pytest.approx(13.9794, abs=1e-4)


def test_both_are_compared_at_a_size_that_is_given():
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (16, 8)))
    middle = grey(128, (16, 16))
    assert psnr(stripes, middle, size=(4, 4)) > psnr(stripes, middle) + 10


def test_means_are_over_the_scenes():
    scores = Scores(images={"a": 20.0, "b": 24.0}, references={"a": 21.0, "b": 22.0})
    assert scores.as_metrics() == {"psnr": 22.0, "psnr_reference": 21.5}
    assert scores.by_image() == {"psnr": {"a": 20.0, "b": 24.0}}


def test_references_of_some_images_are_not_compared_with_the_results_of_all():
    scores = Scores(images={"a": 20.0, "b": 24.0}, references={"a": 21.0})
    assert scores.reference_mean is None
    assert "psnr_reference" not in scores.as_metrics()


def test_scenes_without_targets_measure_nothing():
    assert Scores().as_metrics() == Scores().by_image() == {}


def test_scores_of_equal_images_are_json():
    written = json.dumps(Scores(images={"a": psnr(grey(1), grey(1))}).as_metrics(), allow_nan=False)
    assert json.loads(written)["psnr"] == 100
