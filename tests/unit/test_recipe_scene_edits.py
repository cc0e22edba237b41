"""Edits of procedural scenes in the small model's pre-training: only what the instruction names changes."""

import random

import numpy as np
import pytest
import torch
from recipe_modules import drawn, recipe_modules, words_of

EACH = 25
CHANGED = {"recolour": {6, 7, 8}, "move": {2, 3}, "exchange": {1}, "resize": {4}}
"""Numbers of the one shape that another becomes (`scenes.SHAPE_NUMBERS`)."""


@pytest.fixture(scope="module")
def recipe():
    return recipe_modules()


@pytest.fixture(scope="module")
def scenes(recipe):
    """Return edits by kind, at least `EACH` of every one."""
    rng, found = random.Random(0), {}
    while len(found) < 7 or min(map(len, found.values())) < EACH:
        edit = recipe.scene_edits.scene_edit(rng)
        found.setdefault(edit.kind.removeprefix("scene_"), []).append(edit)
    return {kind: edits[:EACH] for kind, edits in found.items()}


def placed(recipe, caption):
    """Return the place that a caption names, as (x, y)."""
    said = " ".join(words_of(caption)).replace("to the", "at the").replace("at the middle", "in the middle")
    names = [name for name in recipe.shape_numbers.PLACES if name in said]
    return recipe.shape_numbers.PLACES[max(names, key=len)]


@pytest.mark.parametrize("kind", CHANGED)
def test_one_shape_becomes_another_and_all_else_stays(scenes, kind):
    for edit in scenes[kind]:
        before, after = (np.stack(side) for side in edit.shapes)
        rows, columns = np.nonzero(before != after)
        assert len(set(rows)) == 1
        assert set(columns) <= CHANGED[kind]
        np.testing.assert_array_equal(*edit.backgrounds)


@pytest.mark.parametrize(("kind", "fewer", "more"), [("remove", 1, 0), ("add", 0, 1)])
def test_one_shape_is_there_on_one_side_only(scenes, kind, fewer, more):
    for edit in scenes[kind]:
        few, many = ([tuple(shape) for shape in edit.shapes[side]] for side in (fewer, more))
        assert len(many) == len(few) + 1
        assert [shape for shape in many if shape in few] == few
        np.testing.assert_array_equal(*edit.backgrounds)


def test_another_background_leaves_the_shapes(scenes):
    for edit in scenes["background"]:
        np.testing.assert_array_equal(*edit.shapes)
        assert (edit.backgrounds[0] != edit.backgrounds[1]).any()


@pytest.mark.parametrize("kind", ["recolour", "move", "remove", "add", "exchange", "resize"])
def test_pixels_away_from_the_changed_shape_stay(recipe, scenes, kind):
    y, x = recipe.scenes.grid(64, 64, "cpu")
    for edit in scenes[kind]:
        reference, target = drawn(edit)
        changed = {tuple(shape) for shape in edit.shapes[0]} ^ {tuple(shape) for shape in edit.shapes[1]}
        # a square's corners are the furthest from a centre, 0.86 * 2 ** 0.5 radii; edges are smooth over a pixel
        near = [(x - s[2]).square() + (y - s[3]).square() < (1.22 * s[4] + 2 / 32) ** 2 for s in changed]
        away = ~torch.stack(near).any(0)
        assert torch.equal(reference[:, away], target[:, away])
        assert (reference != target).any()


def test_a_shape_moves_to_the_place_that_is_named(recipe, scenes):
    for edit in scenes["move"]:
        before, after = (np.stack(side) for side in edit.shapes)
        (row,) = set(np.nonzero(before != after)[0])
        np.testing.assert_allclose(after[row, 2:4], placed(recipe, edit.caption), atol=0.0601)


def test_an_added_shape_is_what_and_where_the_caption_says(recipe, scenes):
    for edit in scenes["add"]:
        few = {tuple(shape) for shape in edit.shapes[0]}
        (added,) = [shape for shape in edit.shapes[1] if tuple(shape) not in few]
        assert recipe.scenes.SHAPES[int(added[1])] in edit.caption
        np.testing.assert_allclose(added[2:4], placed(recipe, edit.caption), atol=0.0601)
        (colour,) = {word for word in words_of(edit.caption) if word in recipe.scenes.COLOURS}
        np.testing.assert_allclose(added[6:9], recipe.scenes.COLOURS[colour], atol=0.0501)


def test_a_resized_shape_grows_where_the_caption_says_so(scenes):
    for edit in scenes["resize"]:
        before, after = (np.stack(side)[:, 4].sum() for side in edit.shapes)
        assert (after > before) == bool({"larger", "enlarge"} & set(words_of(edit.caption)))


def test_shapes_of_a_scene_are_distinguished_by_kind_and_place(recipe):
    for seed in range(50):
        _, _, shapes = recipe.scene_edits.random_scene(random.Random(seed), 3)
        assert len({shape.thing for shape in shapes}) == len({shape.place for shape in shapes}) == 3
