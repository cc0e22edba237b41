"""How visits are dealt to processes and steps, even if the batch size and process count change on the way."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_epoch import SIZES, rules, sample

from difftrain.data.streaming.rounds import Position, Rounds


def rounds(count=None, *, samples=None, start=None, micro_batches=1, epochs=None, processes=1, **changes):
    samples = samples or [sample(index, SIZES[index % 3]) for index in range(count)]
    return Rounds(
        samples=samples, rules=rules(**changes), start=start or Position(), micro_batches=micro_batches,
        epochs=epochs, processes=processes,
    )  # fmt: skip


def shown(steps):
    """Count how often each sample comes in some steps."""
    return Counter(visit.name for step in steps for part in step for batch in part.batches for visit in batch)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 25),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)), max_size=4),
    st.integers(0, 2),
)
def test_an_epoch_shows_every_sample_as_often_as_it_should_whatever_changes_on_the_way(count, stages, repeats):
    every = {"repeats": {"edits": repeats}, "epochs": 1}
    position, seen = Position(), Counter()
    for batch_size, processes, micro_batches, steps in stages:
        part = rounds(
            count, start=position, batch_size=batch_size, processes=processes, micro_batches=micro_batches, **every
        )
        done = list(islice(part.steps(), steps))
        seen += shown(done)
        position = Position(
            epoch=done[-1][-1].position.epoch, samples=done[-1][-1].position.samples, order=done[-1][-1].position.order
        ) if done else position  # fmt: skip
    seen += shown(rounds(count, start=position, batch_size=2, **every).steps())
    assert seen == {f"edits/{index}": repeats + 1 for index in range(count)}


def test_a_hundred_samples_with_another_batch_size_after_half_an_epoch_come_once_each():
    # 22 of them never came and 24 came twice
    first = list(islice(rounds(100, batch_size=2).steps(), 25))
    rest = rounds(100, batch_size=4, epochs=1, start=first[-1][-1].position).steps()
    assert shown([*first, *rest]) == {f"edits/{index}": 1 for index in range(100)}


@pytest.mark.parametrize(
    "change",
    [
        {"reference_dropout": 0.5}, {"repeats": {"edits": 1}}, {"probability": {"edits": 1.0}, "caption_dropout": 1.0},
    ],
)  # fmt: skip
def test_what_was_taken_stays_taken_when_shapes_and_counts_change(change):
    first = list(islice(rounds(30, batch_size=2).steps(), 7))
    rest = rounds(30, batch_size=3, epochs=1, start=first[-1][-1].position, **change).steps()
    visits = 2 if "repeats" in change else 1
    assert shown([*first, *rest]) == {f"edits/{index}": visits for index in range(30)}


def test_a_sample_that_came_to_the_dataset_is_shown_and_moves_no_other():
    samples = [sample(index) for index in range(20)]
    first = list(islice(rounds(samples=samples).steps(), 4))
    more = [sample(99), *samples]
    rest = rounds(samples=more, epochs=1, start=first[-1][-1].position).steps()
    assert shown([*first, *rest]) == {f"edits/{index}": 1 for index in (*range(20), 99)}


def test_the_order_of_an_epoch_does_not_follow_the_batch_size():
    orders = [
        [visit.name for step in rounds(40, batch_size=size, epochs=1).steps() for visit in step[0].batches[0]]
        for size in (1, 4)
    ]
    first_of_batches = [name for name in orders[0] if name in orders[1][::4]]
    assert first_of_batches[0] == orders[1][0]
    assert orders[0] != sorted(orders[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 20), st.integers(1, 3), st.integers(1, 3))
def test_rounds_from_any_position_continue_as_if_never_stopped(count, batch_size, done, processes, micro_batches):
    facts = {"batch_size": batch_size, "processes": processes, "micro_batches": micro_batches}
    whole = list(islice(rounds(count, **facts).steps(), done + 6))
    start = whole[done - 1][-1].position if done else Position()
    resumed = list(islice(rounds(count, start=start, **facts).steps(), 6))
    assert resumed == whole[done:]


def test_a_run_in_epochs_ends_with_an_epoch_and_a_smaller_last_step():
    steps = list(rounds(5, samples=[sample(i) for i in range(5)], batch_size=2, micro_batches=2, epochs=1).steps())
    assert [[part.samples for part in step] for step in steps] == [[2, 2], [1]]


def test_a_step_may_span_two_epochs():
    steps = list(islice(rounds(samples=[sample(0)], micro_batches=4).steps(), 1))
    assert [part.position.epoch for part in steps[0]] == [0, 1, 2, 3]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4),
    st.sampled_from([{}, {"probability": {"edits": 0.5}}, {"reference_dropout": 0.4}]), st.integers(0, 5),
)  # fmt: skip
def test_steps_left_are_counted_right(count, batch_size, processes, micro_batches, epochs, change, done):
    facts = {"batch_size": batch_size, "processes": processes, "micro_batches": micro_batches, "epochs": epochs}
    facts |= change
    whole = list(rounds(count, **facts).steps())
    assert rounds(count, **facts).steps_left() == len(whole)
    if 0 < done <= len(whole):
        assert rounds(count, start=whole[done - 1][-1].position, **facts).steps_left() == len(whole) - done


def test_steps_without_an_end_are_not_counted():
    assert rounds(3).steps_left() is None


def test_processes_share_an_epoch_without_doubles():
    (step,) = rounds(samples=[sample(index) for index in range(5)], batch_size=2, processes=4, epochs=1).steps()
    assert [len(batch) for batch in step[0].batches] == [2, 2, 1]
    assert step[0].position == Position(epoch=0, samples=5)
