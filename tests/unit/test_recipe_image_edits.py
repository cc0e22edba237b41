"""Edits of any image in the small model's pre-training: the target is what the instruction says."""

import random

import numpy as np
import pytest
import torch
from recipe_modules import drawn, first_of, recipe_modules, words_of

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
CHANNELS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def recipe():
    return recipe_modules()


@pytest.fixture(scope="module")
def photograph():
    """Return [3, 6, 6], without a symmetry, and away from the ends of the range."""
    return torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3


def target_of(recipe, kind, photograph, seed=0):
    """Return the edit, and its target [H, W, 3]."""
    edit = first_of(kind, recipe.image_edits.image_edit, seed)
    reference, target = drawn(edit, photograph)
    assert torch.equal(reference, photograph)
    return edit, target.permute(1, 2, 0).double().numpy()


def luma(image):
    return (image @ LUMA)[..., None]


COLOURS = {
    "grey": lambda p: np.repeat(luma(p), 3, axis=-1),
    "negative": lambda p: 1 - p,
    "keep": lambda p: p,
    "brighter": lambda p: 1.15 * p**0.7,
    "darker": lambda p: 0.65 * p**1.25,
    "more_contrast": lambda p: 0.5 + 1.6 * (p - 0.5),
    "less_contrast": lambda p: 0.5 + 0.5 * (p - 0.5),
    "more_colour": lambda p: luma(p) + 1.9 * (p - luma(p)),
    "less_colour": lambda p: luma(p) + 0.4 * (p - luma(p)),
    "warmer": lambda p: p * [1.15, 1.0, 0.65],
    "cooler": lambda p: p * [0.65, 0.95, 1.2],
}


@pytest.mark.parametrize("kind", COLOURS)
def test_a_change_of_colour_is_its_formula(recipe, photograph, kind):
    _, target = target_of(recipe, kind, photograph)
    expected = COLOURS[kind](photograph.permute(1, 2, 0).double().numpy()).clip(0, 1)
    np.testing.assert_allclose(target, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_swapped_colours_are_the_two_that_are_named(recipe, photograph, seed):
    edit, target = target_of(recipe, "swap_colours", photograph, seed)
    first, second = (CHANNELS.index(word) for word in words_of(edit.caption) if word in CHANNELS)
    expected = photograph.permute(1, 2, 0).numpy().copy()
    expected[..., [first, second]] = expected[..., [second, first]]
    np.testing.assert_allclose(target, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_tint_is_the_image_in_shades_of_the_named_colour(recipe, photograph, seed):
    edit, target = target_of(recipe, "tint", photograph, seed)
    (name,) = {word for word in words_of(edit.caption) if word in recipe.scenes.COLOURS}
    colour, image = np.array(recipe.scenes.COLOURS[name]), photograph.permute(1, 2, 0).double().numpy()
    shade = 0.62 * colour / max(colour @ LUMA, 0.25)
    expected = 0.8 * luma(image) * shade + 0.2 * image + 0.12 * colour
    np.testing.assert_allclose(target, expected.clip(0, 1), atol=1e-5)


TURNS = {
    "mirror": np.fliplr,
    "flip": np.flipud,
    "rotate_half": lambda p: np.rot90(p, 2),
    "rotate_left": np.rot90,  # numpy turns to the left
    "rotate_right": lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("kind", TURNS)
def test_a_turn_is_numpys(recipe, photograph, kind):
    _, target = target_of(recipe, kind, photograph)
    np.testing.assert_allclose(target, TURNS[kind](photograph.permute(1, 2, 0).numpy()), atol=1e-6)


@pytest.mark.parametrize("kind", ["mirror", "flip", "rotate_half"])
def test_an_oblong_image_is_turned_too(recipe, photograph, kind):
    oblong = photograph[:, :4]
    _, target = target_of(recipe, kind, oblong)
    np.testing.assert_allclose(target, TURNS[kind](oblong.permute(1, 2, 0).numpy()), atol=1e-6)


def test_a_shape_is_added_in_its_colour_where_the_caption_says(recipe):
    edit = first_of("add", lambda rng: recipe.image_edits.image_edit(rng), seed=5)
    edit.shapes[1][0][1] = recipe.scenes.SHAPES.index("square")  # a ring has nothing in its middle
    x, y = next(xy for place, xy in sorted(recipe.shape_numbers.PLACES.items(), key=lambda item: -len(item[0]))
                if place in edit.caption.lower())  # fmt: skip
    reference, target = drawn(edit, torch.full((3, 64, 64), 0.5))
    column, row = (round((value + 1) * 32) for value in (x, y))
    (name,) = {word for word in words_of(edit.caption) if word in recipe.scenes.COLOURS}
    np.testing.assert_allclose(target[:, row, column], recipe.scenes.COLOURS[name], atol=0.06)
    assert torch.equal(reference, torch.full((3, 64, 64), 0.5))


def test_a_frame_changes_the_border_and_leaves_the_inside(recipe, photograph):
    image = torch.nn.functional.interpolate(photograph[None], (64, 64))[0]
    reference, target = drawn(first_of("frame", recipe.image_edits.image_edit), image)
    assert torch.equal(target[:, 16:48, 16:48], reference[:, 16:48, 16:48])
    assert torch.equal(target[:, 0], target[:, 0, :1].expand(-1, 64))


def test_a_recoloured_shape_is_all_that_changes(recipe, photograph):
    image = torch.nn.functional.interpolate(photograph[None], (64, 64))[0]
    edit = first_of("recolour", recipe.image_edits.image_edit)
    reference, target = drawn(edit, image)
    untouched = (reference == image).all(0)
    assert 0.2 < untouched.float().mean() < 1
    torch.testing.assert_close(target[:, untouched], reference[:, untouched])


def test_two_edits_in_a_row_are_both_done(recipe, photograph):
    rng = random.Random(0)
    edit = next(edit for edit in iter(lambda: recipe.image_edits.two(rng), None)
                if not edit.shapes[1] and (edit.matrix == -np.eye(3)).all())  # fmt: skip
    _, target = drawn(edit, photograph)
    turn = {"mirror": np.fliplr, "flip": np.flipud}[recipe.recipes.TURNS[edit.turn]]
    np.testing.assert_allclose(target.permute(1, 2, 0), 1 - turn(photograph.permute(1, 2, 0).numpy()), atol=1e-6)
