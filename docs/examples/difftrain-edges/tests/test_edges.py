"""Tests of the example: the contract of all generators, then the images of this one."""

import random

import pytest
from PIL import Image

from difftrain.testing import check_generator
from difftrain_edges.plugin import Edges


@pytest.mark.parametrize("style", ["edges", "contour", "random"])
def test_edges_holds_what_every_generator_must(style):
    check_generator(Edges(style=style))


def test_a_flat_image_has_no_lines_and_no_frame():
    flat = Image.new("RGB", (40, 30), "orange")
    assert Edges().generate(flat, random.Random(0)).getcolors() == [(40 * 30, (0, 0, 0))]


def test_a_step_is_drawn_where_it_is():
    step = Image.new("L", (40, 30), 0)
    step.paste(255, (20, 0, 40, 30))
    drawn = Edges().generate(step.convert("RGB"), random.Random(0)).convert("L")
    assert {column for column in range(40) if drawn.getpixel((column, 15))} == {20}


def test_random_draws_both_styles():
    flat = Image.new("RGB", (8, 8), "grey")
    levels = {Edges(style="random").generate(flat, random.Random(seed)).getpixel((4, 4)) for seed in range(20)}
    assert levels == {(0, 0, 0), (255, 255, 255)}
