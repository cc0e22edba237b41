"""Golden values: ComfyUI's reference latents, methods "offset" and "index", and the BFL code, run once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difftrain_flux_kontext.flavour import Kontext
from difftrain_flux_kontext.reference_ids import place_references

SIZES = st.lists(st.tuples(st.integers(1, 98), st.integers(1, 98)).map(lambda s: (2 * s[0], 2 * s[1])), max_size=8)


def starts(sizes, rule="offset"):
    """First position id of each reference, in tokens."""
    return [(place.index, place.top // 2, place.left // 2) for place in place_references(sizes, rule)]


def test_one_reference_starts_at_the_origin():
    assert starts([(128, 128)]) == [(1, 0, 0)]


def test_second_square_reference_stands_below_the_first():
    assert starts([(128, 128), (128, 128)]) == [(1, 0, 0), (1, 64, 0)]


def test_three_references_of_different_shapes():
    assert starts([(64, 64), (128, 96), (96, 64)]) == [(1, 0, 0), (1, 0, 32), (1, 64, 0)]


def test_index_rule_numbers_references_without_offset():
    assert starts([(64, 64), (128, 96), (96, 64)], "index") == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]


@given(sizes=SIZES)
def test_offset_references_never_overlap(sizes):
    boxes = [
        (place.top, place.left, place.top + height, place.left + width)
        for place, (height, width) in zip(place_references(sizes, "offset"), sizes, strict=True)
    ]
    for first in range(len(boxes)):
        for second in range(first):
            top, left = max(boxes[first][0], boxes[second][0]), max(boxes[first][1], boxes[second][1])
            bottom, right = min(boxes[first][2], boxes[second][2]), min(boxes[first][3], boxes[second][3])
            assert top >= bottom or left >= right


@given(sizes=SIZES)
def test_offsets_are_whole_tokens(sizes):
    assert all(place.top % 2 == 0 and place.left % 2 == 0 for place in place_references(sizes, "offset"))


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'offset' or 'index'"):
        Kontext(reference_ids="uxo")


def test_preferred_sizes_are_the_stock_pipelines():
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    assert list(Kontext.preferred_sizes) == PREFERRED_KONTEXT_RESOLUTIONS
