"""Sets with their own batch size, schedule and kind, mixed in one run: nothing is lost or doubled."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_epoch import SIZES, sample

from difftrain.data.streaming.coming_batches import coming_shapes, shape_name
from difftrain.data.streaming.epoch import plan_epoch
from difftrain.data.streaming.rounds import Position, Rounds
from difftrain.data.streaming.set_rules import EpochRules, SetRules

NAMES = ("a", "b", "c")


def samples_of(**counts):
    """Return samples of several sets, in three shapes."""
    return [sample(index, SIZES[index % 3], dataset=name) for name, count in counts.items() for index in range(count)]


def rounds(counts, sets, *, batch_size=2, evenly=False, **changes):
    rules = EpochRules(seed=3, batch_size=batch_size, sets=sets, evenly=evenly)
    return Rounds(samples=samples_of(**counts), rules=rules, **changes)


def visits_of(steps):
    return [visit for step in steps for part in step for batch in part.batches for visit in batch]


def shown(steps):
    return Counter(visit.name for visit in visits_of(steps))


@st.composite
def windows(draw):
    """Return a first step and a last one, or none."""
    start = draw(st.integers(1, 6))
    return {"start_step": start, "end_step": draw(st.none() | st.integers(start, start + 8))}


@st.composite
def mixtures(draw, scheduled=True):
    """Return sizes and rules of three sets; the first always takes part."""
    counts = {name: draw(st.integers(1, 9)) for name in NAMES}
    sets = {}
    for name in NAMES:
        when = draw(windows()) if scheduled and name != "a" and draw(st.booleans()) else {}
        sets[name] = SetRules(
            repeats=draw(st.integers(0, 2)),
            batch_size=draw(st.none() | st.integers(1, 4)),
            regularises=name == "b" and draw(st.booleans()),
            probability=draw(st.sampled_from([1.0, 1.0, 0.5])),
            **when,
        )
    return counts, sets


STAGES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)), max_size=4)
"""Batch size, processes, micro-batches and steps until the run is stopped."""


@settings(max_examples=120, deadline=None)
@given(mixtures(scheduled=False), STAGES, st.booleans())
def test_an_epoch_shows_exactly_its_visits_whatever_changes_on_the_way(mixture, stages, evenly):
    counts, sets = mixture
    facts = {"evenly": evenly, "epochs": 1}
    position, seen, step = Position(), [], 0
    for batch_size, processes, micro_batches, count in stages:
        run = rounds(
            counts, sets, start=position, step=step, batch_size=batch_size, processes=processes,
            micro_batches=micro_batches, **facts,
        )  # fmt: skip
        done = list(islice(run.steps(), count))
        seen += visits_of(done)
        step += len(done)
        position = done[-1][-1].position if done else position
    seen += visits_of(rounds(counts, sets, start=position, step=step, **facts).steps())
    whole = [visit for batch in plan_epoch(samples_of(**counts), 0, EpochRules(seed=3, batch_size=1, sets=sets))
             for visit in batch]  # fmt: skip
    assert sorted(visit.number for visit in seen) == sorted(visit.number for visit in whole)
    for name, count in counts.items():
        if sets[name].probability == 1:
            expected = {f"{name}/{index}": sets[name].repeats + 1 for index in range(count)}
            assert {key: times for key, times in Counter(v.name for v in seen).items() if key[0] == name} == expected


@settings(max_examples=120, deadline=None)
@given(mixtures(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 12), st.booleans())
def test_a_run_stopped_anywhere_continues_as_if_never_stopped(
    mixture, batch_size, processes, micro_batches, done, evenly
):
    facts = {"batch_size": batch_size, "processes": processes, "micro_batches": micro_batches, "evenly": evenly}
    whole = list(islice(rounds(*mixture, **facts).steps(), done + 6))
    start = whole[done - 1][-1].position if done else Position()
    restored = Position.restored(start.epoch, start.state())
    assert list(islice(rounds(*mixture, start=restored, step=done, **facts).steps(), 6)) == whole[done:]


@settings(max_examples=120, deadline=None)
@given(mixtures(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_every_step_uses_the_sets_that_it_should_and_no_batch_mixes_kinds(mixture, batch_size, processes, micro):
    counts, sets = mixture
    run = rounds(counts, sets, batch_size=batch_size, processes=processes, micro_batches=micro)
    for number, step in enumerate(islice(run.steps(), 15), 1):
        active = {name for name in NAMES if sets[name].in_steps(number)}
        for part in step:
            assert part.active == active
            for batch in part.batches:
                assert {visit.sample.dataset_id for visit in batch} <= active
                assert len({(visit.shape_key, visit.regularises) for visit in batch}) == 1
                limits = {run.rules.batch_size_of(visit.sample.dataset_id) for visit in batch}
                assert len(limits) == 1
                assert len(batch) <= limits.pop()


@settings(max_examples=80, deadline=None)
@given(mixtures(), st.integers(1, 3), st.integers(1, 3))
def test_no_visit_comes_twice_and_a_finished_epoch_lacks_none_of_a_set_that_stayed(mixture, batch_size, processes):
    counts, sets = mixture
    steps = list(rounds(counts, sets, batch_size=batch_size, processes=processes, epochs=2).steps())
    numbers = [visit.number for visit in visits_of(steps)]
    assert len(numbers) == len(set(numbers))
    epochs = {0: [], 1: []}
    for step in steps:
        for part in step:
            epochs[part.position.epoch] += [visit.name for batch in part.batches for visit in batch]
    for names in epochs.values():
        for name in ("a", *(name for name in "bc" if not sets[name].is_scheduled)):
            if sets[name].probability == 1:
                count = Counter(key for key in names if key.startswith(name))
                assert set(count.values()) == {sets[name].repeats + 1}
                assert len(count) == counts[name]


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.integers(1, 3), st.integers(1, 3), st.integers(0, 6))
def test_steps_left_of_a_scheduled_run_are_counted_right(mixture, batch_size, processes, done):
    facts = {"batch_size": batch_size, "processes": processes, "epochs": 3}
    whole = list(rounds(*mixture, **facts).steps())
    assert rounds(*mixture, **facts).steps_left() == len(whole)
    if 0 < done <= len(whole):
        left = rounds(*mixture, start=whole[done - 1][-1].position, step=done, **facts).steps_left()
        assert left == len(whole) - done


def test_a_set_that_begins_within_an_epoch_is_shown_completely_in_what_is_left():
    run = rounds({"a": 12, "b": 4}, {"b": SetRules(start_step=3)}, epochs=1)
    steps = list(run.steps())
    assert {visit.sample.dataset_id for visit in visits_of(steps[:2])} == {"a"}
    assert shown(steps) == {f"{name}/{n}": 1 for name, count in (("a", 12), ("b", 4)) for n in range(count)}


def test_a_set_that_ends_takes_nothing_more():
    steps = list(islice(rounds({"a": 12, "b": 12}, {"b": SetRules(end_step=2)}).steps(), 20))
    assert {visit.sample.dataset_id for visit in visits_of(steps[2:])} == {"a"}
    assert "b" in {visit.sample.dataset_id for visit in visits_of(steps[:2])}


def test_epochs_choose_their_sets():
    sets = {"a": SetRules(end_epoch=1), "b": SetRules(start_epoch=2, end_epoch=2), "c": SetRules(start_epoch=3)}
    steps = islice(rounds({"a": 3, "b": 3, "c": 3}, sets, batch_size=1).steps(), 12)
    assert [visit.sample.dataset_id for visit in visits_of(steps)] == [*"aaabbbcccccc"]


def test_the_data_ends_when_no_set_is_left():
    assert len(list(rounds({"a": 3}, {"a": SetRules(end_step=4)}, batch_size=1).steps())) == 4
    assert len(list(rounds({"a": 3}, {"a": SetRules(end_epoch=2)}, batch_size=1).steps())) == 6


def test_an_epoch_does_not_wait_for_a_set_that_ignores_epochs():
    sets = {"b": SetRules(ignores_epochs=True)}
    run = rounds({"a": 5, "b": 40}, sets, batch_size=1, evenly=True, epochs=1)
    count = Counter(visit.sample.dataset_id for visit in visits_of(run.steps()))
    assert count["a"] == 5
    assert 1 <= count["b"] <= 10  # as often as the other, not 40 times
    few = rounds({"a": 40, "b": 4}, sets, batch_size=1, evenly=True, epochs=1)
    count = Counter(visit.sample.dataset_id for visit in visits_of(few.steps()))
    assert count == {"a": 40, "b": 40}  # the small set starts over


def test_uniform_sampling_lets_a_small_set_come_as_often_until_it_is_through():
    def early(evenly):
        order = visits_of(rounds({"a": 20, "b": 200}, {}, batch_size=1, evenly=evenly, epochs=1).steps())
        assert len(order) == 220
        return sum(visit.sample.dataset_id == "a" for visit in order[:30])

    assert early(evenly=True) >= 9
    assert early(evenly=False) <= 6


def test_sets_with_one_batch_size_share_batches_and_others_do_not():
    sets = {"b": SetRules(batch_size=4), "c": SetRules(batch_size=4)}
    samples = [sample(index, dataset=name) for name in NAMES for index in range(6)]
    batches = plan_epoch(samples, 0, EpochRules(seed=0, batch_size=2, sets=sets))
    kinds = Counter(len(batch) for batch in batches)
    assert kinds == {2: 3, 4: 3}
    assert all(len(batch) == 4 for batch in batches if batch[0].sample.dataset_id != "a")


def test_the_share_of_full_places_counts_each_set_by_its_own_batch_size():
    sets = {"b": SetRules(batch_size=4)}
    rules = EpochRules(seed=0, batch_size=2, sets=sets)
    samples = [sample(index, dataset=name) for name, count in (("a", 3), ("b", 5)) for index in range(count)]
    assert plan_epoch(samples, 0, rules).fill_share == pytest.approx(8 / (2 * 2 + 2 * 4))
    assert plan_epoch([], 0, rules).fill_share == 1


@settings(max_examples=40, deadline=None)
@given(mixtures(), st.integers(1, 3))
def test_all_shapes_of_a_scheduled_run_are_known_before(mixture, micro_batches):
    counts, sets = mixture
    sets = {**sets, "c": SetRules(start_step=2)}
    run = rounds(counts, sets, micro_batches=micro_batches)
    trained = Counter(shape_name(batch) for step in islice(run.steps(), 12) for part in step for batch in part.batches)
    known = Counter()
    for shape in coming_shapes(run, 12):
        known[shape.name] += shape.times
    assert known == trained
