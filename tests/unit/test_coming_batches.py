"""The shapes of a run's batches, known before any is read."""

from itertools import islice

import pytest
from test_epoch import placed, rules, sample

from difftrain.data.streaming.coming_batches import ComingBatches, coming_shapes, shape_name
from difftrain.data.streaming.rounds import Position, Rounds
from difftrain.types import ReferenceChoice

WIDE, SQUARE = (96, 48), (64, 64)


def rounds(sizes, *, start=None, epochs=None, micro_batches=1, processes=1, **changes):
    samples = [sample(index, size) for index, size in enumerate(sizes)]
    return Rounds(
        samples=samples, rules=rules(**changes), start=start or Position(), epochs=epochs,
        micro_batches=micro_batches, processes=processes,
    )  # fmt: skip


def names(planned, steps=1000):
    return [(shape.name, shape.times) for shape in coming_shapes(planned, steps)]


def trained(planned, steps):
    """Return the names of all batches that the steps compute."""
    return {shape_name(batch) for step in islice(planned.steps(), steps) for part in step for batch in part.batches}


def test_all_shapes_are_known_largest_first_with_the_smaller_last_batches():
    planned = rounds([SQUARE] * 5 + [WIDE] * 2)
    assert names(planned) == [
        ("2 x 96x48 + 1 reference 96x48", 1), ("2 x 64x64 + 1 reference 64x64", 2), ("64x64 + 1 reference 64x64", 1),
    ]  # fmt: skip
    assert {name for name, _ in names(planned)} == trained(planned, 30)


def test_only_what_the_steps_left_show_is_known():
    planned = rounds([SQUARE] * 20 + [WIDE], batch_size=1, micro_batches=2)
    assert {name for name, _ in names(planned, 3)} == trained(planned, 3)
    assert sum(times for _, times in names(planned, 3)) == 6


def test_a_run_that_resumes_within_an_epoch_knows_the_next_one_too():
    whole = rounds([SQUARE] * 5)
    (first,) = next(whole.steps())
    planned = rounds([SQUARE] * 5, start=first.position)
    assert names(planned) == [("2 x 64x64 + 1 reference 64x64", 3), ("64x64 + 1 reference 64x64", 2)]
    ends_there = rounds([SQUARE] * 4, start=Position(epoch=0, samples=3, order=first.position.order[:3]), epochs=1)
    assert [times for _, times in names(ends_there)] == [1]


def test_shapes_that_are_drawn_are_looked_for_in_several_epochs():
    choices = tuple(ReferenceChoice(references=(placed("r", size),)) for size in (SQUARE, WIDE))
    planned = Rounds(samples=[sample(index, SQUARE, choices) for index in range(3)], rules=rules(batch_size=3))
    found = dict(names(planned))
    assert trained(planned, 10) & set(found)
    assert next(iter(found)) == "3 x 64x64 + 1 reference 96x48"  # the largest that any draw may give


def test_dropped_references_are_a_shape_of_their_own():
    found = dict(names(rounds([SQUARE] * 8, batch_size=1, reference_dropout=0.5)))
    assert set(found) == {"64x64", "64x64 + 1 reference 64x64"}


def test_samples_that_the_family_keeps_apart_are_shapes_of_their_own():
    planned = rounds([SQUARE] * 2, batch_size=1, batch_key=lambda sample: sample.target.record.key)
    assert [shape.times for shape in coming_shapes(planned, 100)] == [1, 1]


def test_references_of_several_sizes_are_named():
    choice = ReferenceChoice(references=(placed("a", SQUARE), placed("b", WIDE), placed("c", WIDE)))
    planned = Rounds(samples=[sample(0, SQUARE, (choice,))], rules=rules())
    assert names(planned) == [("64x64 + 3 references 64x64, 96x48", 1)]


@pytest.mark.parametrize("steps", [1, 100])
def test_without_samples_there_are_no_shapes(steps):
    assert names(rounds([]), steps) == []


def test_a_batch_of_a_shape_is_read_from_its_visits():
    class Reader:
        def read(self, visits):
            return [visit.name for visit in visits]

    coming = ComingBatches(rounds([SQUARE] * 3), Reader(), 10)
    assert [len(coming.read(shape)) for shape in coming.shapes] == [2, 1]
