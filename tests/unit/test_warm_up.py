"""Compiling for the batch shapes of a run: which, in which order, and what is said."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from difftrain.training.fitting import warm_up
from difftrain.training.fitting.warm_up import compile_for, compile_when_new, shapes_to_compile


class Said(list):
    """A reporter that also keeps what phases say."""

    say = list.append

    @contextmanager
    def phase(self, name, total=None):
        self.append(f"{name} ({total})")
        yield SimpleNamespace(begin=self.append, advance=lambda: self.append("done"))


def shape(name, times=1):
    return SimpleNamespace(name=name, times=times)


def test_few_shapes_are_all_compiled_without_a_word():
    shapes, said = [shape("large"), shape("small")], Said()
    assert shapes_to_compile(shapes, 2, said) == shapes
    assert said == []


def test_of_many_shapes_the_largest_and_the_most_frequent_are_compiled():
    shapes, said = [shape("a", 0), shape("b", 1), shape("c", 9), shape("d", 2), shape("e", 9)], Said()
    assert [each.name for each in shapes_to_compile(shapes, 3, said)] == ["a", "c", "e"]
    assert "batches come in 5 shapes, and compile_shapes_limit is 3: only" in said[0]
    assert [each.name for each in shapes_to_compile(shapes, 1, said)] == ["a"]


@pytest.fixture
def tried(monkeypatch):
    """Return what trial steps are computed for."""
    batches = []
    monkeypatch.setattr(warm_up, "trial_step", lambda state, batch: batches.append(batch))
    return batches


def test_each_shape_is_named_and_computed_once(tried):
    said = Said()
    coming = SimpleNamespace(read=lambda shape: f"a batch of {shape.name}")
    compile_for(None, coming, [shape("b"), shape("c")], said, before=1)
    assert tried == ["a batch of b", "a batch of c"]
    assert said == [
        "compile for the other batch shapes (2)", "compile 2 of 3: b", "done", "compile 3 of 3: c", "done",
    ]  # fmt: skip


def test_one_shape_needs_no_phase():
    said = Said()
    compile_for(None, None, [], said, before=1)
    assert said == []


def micro_batches(*shapes):
    return [SimpleNamespace(shape=shape, batch=f"batch {number}") for number, shape in enumerate(shapes)]


def test_a_shape_that_is_not_compiled_yet_is_compiled_before_its_first_batch(tried):
    said, given, state = Said(), micro_batches("a", "b", "a", "c", "b", ""), SimpleNamespace(times_room_made=0)
    assert list(compile_when_new(state, iter(given), ["a"], said)) == given
    assert said == ["compile for batches of b (None)", "compile for batches of c (None)"]
    assert tried == ["batch 1", "batch 3"]


def test_all_shapes_are_compiled_anew_when_blocks_keep_less(tried):
    said, state = Said(), SimpleNamespace(times_room_made=0)
    given = compile_when_new(state, iter(micro_batches("a", "b", "a", "a")), ["a", "b"], said)
    next(given)
    next(given)
    assert tried == []
    state.times_room_made = 1
    assert len(list(given)) == 2
    assert tried == ["batch 2"]


def test_running_out_of_memory_is_left_to_the_step(monkeypatch):
    def full(state, batch):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(warm_up, "trial_step", full)
    given = micro_batches("a", "b")
    assert list(compile_when_new(SimpleNamespace(times_room_made=0), iter(given), [], Said())) == given


def test_nothing_is_compiled_where_the_model_is_not(tried):
    said, given = Said(), micro_batches("a", "b")
    assert list(compile_when_new(SimpleNamespace(times_room_made=0), iter(given), None, said)) == given
    assert said == tried == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_step_leaves_gradients_and_draws_as_they_are(monkeypatch, fails):
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    weights[0].grad = held = torch.full((2,), 7.0)
    state = SimpleNamespace(
        trained=weights, denoiser=torch.nn.Identity(), bare_denoiser=None,
        accelerator=SimpleNamespace(device=torch.device("cpu"), no_sync=lambda model: nullcontext()),
    )  # fmt: skip
    seen = []

    def loss_at(state, denoiser, batch, sigma, noise):
        seen.append((torch.rand(1), [weight.grad for weight in weights]))
        if fails:
            weights[1].grad = torch.ones(2)
            raise torch.OutOfMemoryError
        return weights[0] * weights[1]

    monkeypatch.setattr(warm_up, "loss_at", loss_at)
    torch.manual_seed(1)
    with pytest.raises(torch.OutOfMemoryError) if fails else nullcontext():
        warm_up.trial_step(state, SimpleNamespace(latents=torch.zeros(1, 2), strength=1))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert seen[0][1] == [None, None]
    assert weights[0].grad is held
    assert torch.equal(held, torch.full((2,), 7.0))
    assert weights[1].grad is None
