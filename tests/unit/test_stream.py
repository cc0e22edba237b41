"""The micro-batches of one process: in the order of the rounds, weighted by samples."""

from itertools import islice
from types import SimpleNamespace

import pytest
from test_epoch import SIZES, rules, sample

from difftrain.data.streaming.rounds import Position, Rounds
from difftrain.data.streaming.stream import CachedStream


class NamingReader:
    """Returns the names of a batch's visits instead of tensors."""

    def read(self, visits):
        return tuple(visit.name for visit in visits)


def stream(count, *, process=0, processes=1, batch_size=2, reader=None, sizes=SIZES, **facts):
    samples = [sample(index, sizes[index % len(sizes)]) for index in range(count)]
    planned = Rounds(samples=samples, rules=rules(batch_size=batch_size), processes=processes, **facts)
    return CachedStream(planned, reader or NamingReader(), process=process)


def test_batches_and_positions_are_those_of_the_rounds():
    made = list(stream(7, epochs=2))
    planned = list(Rounds(samples=[sample(i, SIZES[i % 3]) for i in range(7)], rules=rules(), epochs=2).steps())
    assert [micro.batch for micro in made] == [tuple(v.name for v in step[0].batches[0]) for step in planned]
    assert [micro.position for micro in made] == [step[0].position for step in planned]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_weights_of_a_step_are_one_over_its_samples_and_of_repeats_zero(processes):
    every = [list(stream(11, process=p, processes=processes, micro_batches=2, epochs=1)) for p in range(processes)]
    step, samples, seen = [], 0, []
    for place, together in enumerate(zip(*every, strict=True)):
        step += together
        if not together[0].ends_step:
            continue
        own = [micro for micro in step if micro.weight]
        samples = sum(len(micro.batch) for micro in own)
        assert {micro.weight for micro in own} == {processes / samples}, place
        seen += [name for micro in own for name in micro.batch]
        step = []
    assert sorted(seen) == sorted(f"edits/{index}" for index in range(11))


def test_only_the_last_micro_batch_of_a_step_ends_it():
    ends = [micro.ends_step for micro in islice(stream(8, micro_batches=3), 6)]
    assert ends == [False, False, True, False, False, True]


def test_all_processes_have_the_same_positions():
    first, second = (list(stream(9, process=p, processes=2, epochs=2)) for p in (0, 1))
    assert [micro.position for micro in first] == [micro.position for micro in second]
    assert first[-1].position == Position(epoch=1, samples=9)


def test_an_error_while_reading_ahead_reaches_the_trainer():
    def broken(visits):
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(iter(stream(1, reader=SimpleNamespace(read=broken))))
