"""Another stream of batches than that of cached epochs, through the whole run: endless, with its own position."""

from itertools import islice

import pytest
import torch
from long_runs import ADAPTER, changed, steps_of
from safetensors.torch import load_file

from conftest import EditPairs, read_metrics, run_in
from difftrain.data.streaming.epoch import draw_visit
from difftrain.data.streaming.stream import MicroBatch, SavedPosition
from difftrain.startup.run_length import epoch_rules
from difftrain.training import assemble
from difftrain.training.open_stream import OpenedStream


class Drawn:
    """Draws samples over and over, with a generator whose state is the position; has no epochs and no end."""

    def __init__(self, samples, rules, reader, saved, *, accumulate, ends_after=None):
        self.samples, self.rules, self.reader, self.accumulate, self.ends_after = (
            samples, rules, reader, accumulate, ends_after
        )  # fmt: skip
        self.generator, self.count, self.closed = torch.Generator().manual_seed(7), 0, False
        if saved is not None:
            self.generator.set_state(saved.state()["generator"])
            self.count = int(saved.state()["count"])

    @property
    def position(self):
        tensors = {"generator": self.generator.get_state(), "count": torch.tensor(self.count)}
        return SavedPosition(epoch=0, samples=self.count, tensors=tensors)

    def __iter__(self):
        return islice(self.micro_batches(), self.ends_after)

    def micro_batches(self):
        while True:
            number = int(torch.randint(len(self.samples), (), generator=self.generator))
            visit = draw_visit(self.samples[number], 0, self.count, self.rules)
            self.count += 1
            yield MicroBatch(
                batch=self.reader.read([visit]), weight=1 / self.accumulate, position=self.position,
                ends_step=self.count % self.accumulate == 0,
            )  # fmt: skip

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("streams")


@pytest.fixture
def train(folder, monkeypatch):
    """Train on such a stream; return how it ended. ``train.opened`` are the streams."""
    pairs = EditPairs(folder)
    datasets = pairs(count=5)
    arguments = (*pairs.kontext, "--data_backend_config", datasets, "--gradient_accumulation_steps", 2)

    def start(ends_after=None, **options):
        def open_stream(plan, samples, reader, accelerator, saved, step):
            accumulate = plan.config.gradient_accumulation_steps
            rules = epoch_rules(plan)
            stream = Drawn(samples, rules, reader, saved, accumulate=accumulate, ends_after=ends_after)
            start.opened.append(stream)
            return OpenedStream(batches=stream, position=stream.position, steps_left=None, facts={"drawn": "endless"})

        monkeypatch.setattr(assemble, "open_stream", open_stream)
        return run_in(folder, *changed(arguments, **options))

    start.opened = []
    return start


def losses_of(output):
    return [(line["loss"], line["epoch"]) for line in read_metrics(output) if "loss" in line]


def test_an_endless_stream_trains_and_continues_bit_by_bit(train, folder):
    ended = train(output_dir="whole", max_train_steps=6, checkpoint_step_interval=3)
    assert ended.status == 0, ended.err
    assert "finished 6 steps" in ended.err
    assert train(output_dir="stopped", max_train_steps=3).status == 0
    resumed = train(output_dir="stopped", max_train_steps=6)
    assert resumed.status == 0, resumed.err
    assert "checkpoint-3 at step 3 (epoch 0, after 6 of its samples)" in resumed.err
    assert losses_of(folder / "stopped") == losses_of(folder / "whole")
    for name in (ADAPTER, "checkpoint-6/resume/adapter.safetensors", "checkpoint-6/resume/visits.safetensors"):
        assert (folder / "stopped" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    assert load_file(folder / "whole" / "checkpoint-3" / "resume" / "visits.safetensors").keys() == {
        "generator", "count",
    }  # fmt: skip
    assert all(stream.closed for stream in train.opened)


def test_epochs_of_a_stream_that_does_not_tell_its_length_are_refused_before_the_first_step(train, folder):
    ended = train(output_dir="epochs", num_train_epochs=2)
    assert ended.status == 2
    assert "num_train_epochs 2: the length of an epoch is unknown for this data" in ended.err
    assert "max_train_steps" in ended.err
    assert not (folder / "epochs" / "metrics.jsonl").exists()


def test_a_stream_that_ends_early_is_reported_and_what_was_trained_is_saved(train, folder):
    ended = train(output_dir="short", ends_after=8, max_train_steps=6)
    assert ended.status == 2
    assert "the data ends after step 4, but the run needs 6 steps" in ended.err
    assert steps_of(folder / "short") == [1, 2, 3, 4]
    assert (folder / "short" / "checkpoint-4").is_dir()


def test_a_place_in_another_stream_is_refused_by_name(train, folder, monkeypatch):
    assert train(output_dir="other", max_train_steps=1).status == 0
    monkeypatch.undo()
    pairs = EditPairs(folder)
    arguments = (*pairs.kontext, "--data_backend_config", folder / "datasets.json")
    ended = run_in(folder, *changed(arguments, output_dir="other", max_train_steps=2))
    assert ended.status == 2
    assert "the checkpoint's position comes from another kind of data: it has count, generator" in ended.err
