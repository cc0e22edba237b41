"""The endless batch stream: resumable at any place, shared among processes."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_epoch import SIZES, rules, sample

from difftrain.data.epoch import plan_epoch
from difftrain.data.loader import BatchStream, Position


class NamingReader:
    """Gives the names of a batch's visits and its place instead of tensors."""

    def read(self, visits, *, epoch, index):
        return epoch, index, tuple(visit.name for visit in visits)


def stream(count, *, batch_size=2, start=None, process=0, processes=1):
    samples = [sample(index, SIZES[index % 3]) for index in range(count)]
    return BatchStream(
        samples,
        rules(batch_size=batch_size),
        NamingReader(),
        start=start or Position(),
        process=process,
        processes=processes,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 20), st.integers(1, 3))
def test_stream_resumed_at_any_position_goes_on_as_if_never_stopped(count, batch_size, done, processes):
    whole = list(islice(stream(count, batch_size=batch_size, processes=processes), done + 8))
    start = whole[done - 1][1] if done else Position()
    resumed = list(islice(stream(count, batch_size=batch_size, start=start, processes=processes), 8))
    assert resumed == whole[done:]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_together_show_every_batch_of_an_epoch(processes):
    batches = plan_epoch([sample(index, SIZES[index % 3]) for index in range(13)], 0, rules())
    rounds = -(-len(batches) // processes)
    shown = {
        index
        for process in range(processes)
        for (epoch, index, _), _ in islice(stream(13, process=process, processes=processes), rounds)
        if epoch == 0
    }
    assert shown == set(range(len(batches)))


def test_position_counts_the_samples_of_all_processes():
    positions = [position for _, position in islice(stream(8, processes=2), 2)]
    other = [position for _, position in islice(stream(8, process=1, processes=2), 2)]
    assert positions == other
    assert positions[-1].samples >= 4


def test_another_batch_size_goes_on_after_the_samples_that_were_seen():
    (_, reached), *_ = islice(stream(12, batch_size=4), 1)
    resumed = stream(12, batch_size=2, start=reached)
    (epoch, _, names), position = next(iter(resumed))
    assert epoch == reached.epoch
    assert position.samples > reached.samples
    assert position.samples - len(names) >= reached.samples - 1


def test_an_error_while_reading_ahead_reaches_the_trainer():
    class BrokenReader:
        def read(self, visits, *, epoch, index):
            raise OSError("disk gone")

    broken = BatchStream([sample(0)], rules(), BrokenReader(), start=Position())
    with pytest.raises(OSError, match="disk gone"):
        next(iter(broken))
