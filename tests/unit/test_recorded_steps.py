"""Recorded steps: which recording a batch takes, what it reads, and where gradients go."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from difftrain.steps.recorded_steps import CannotRecord, RecordedSteps
from recorder import Recorder


@dataclass(frozen=True)
class Given:
    latents: Tensor
    text: Mapping[str, Tensor]
    count: int = 1


PARAMETERS: list[nn.Parameter] = []


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    model.unused = nn.Parameter(torch.zeros(2))
    PARAMETERS[:] = model.parameters()
    return model


def given(*, rows=2, seed=0, count=1):
    generator = torch.Generator().manual_seed(seed)
    return Given(torch.randn(rows, 3, generator=generator), {"bias": torch.randn(rows, generator=generator)}, count)


def loss_of(model):
    return lambda given: (model(given.latents).flatten() + given.text["bias"]).square() * given.count


def gradients(model, *batches):
    model.zero_grad()
    for batch, weight in batches:
        torch.autograd.backward(loss_of(model)(batch).sum() * weight)
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


def test_replays_give_the_losses_and_gradients_of_each_batch_and_weight(model):
    batches = [(given(seed=1), 0.5), (given(seed=2), 0.25), (given(seed=3, rows=4), 2.0)]
    exact = gradients(model, *batches)
    recorder = Recorder()
    steps = RecordedSteps(list(model.parameters()), print, recorder)
    model.zero_grad()
    for round_ in range(3):  # the first computes directly, the second records
        if round_:
            steps.clear_gradients()
        losses = [steps.accumulate(loss_of(model), batch, weight) for batch, weight in batches]
        for ours, (batch, _) in zip(losses, batches, strict=True):
            assert torch.equal(ours, loss_of(model)(batch).detach())
        for parameter, true in zip(model.parameters(), exact, strict=True):
            assert (parameter.grad is None) == (true is None)
            assert true is None or torch.allclose(parameter.grad, true)
    assert recorder.recordings == 2  # one for each shape


def test_a_number_in_the_input_is_part_of_its_shape(model):
    recorder = Recorder()
    steps = RecordedSteps(list(model.parameters()), print, recorder)
    for _ in range(2):
        single = steps.accumulate(loss_of(model), given(), 1.0)
        double = steps.accumulate(loss_of(model), given(count=2), 1.0)
        assert torch.equal(double, 2 * single)
    assert recorder.recordings == 2


def test_dropped_recordings_are_made_again_and_gradients_stay_in_place(model):
    recorder = Recorder()
    steps = RecordedSteps(list(model.parameters()), print, recorder)
    assert not steps.drop()
    for _ in range(2):
        steps.accumulate(loss_of(model), given(), 1.0)
    place = model.weight.grad.data_ptr()
    assert steps.drop()
    steps.clear_gradients()
    assert not model.weight.grad.any()
    steps.accumulate(loss_of(model), given(), 1.0)
    assert recorder.recordings == 2
    assert model.weight.grad.data_ptr() == place


@pytest.mark.parametrize("before", [None, 2.0])
def test_gradients_that_others_moved_come_back(model, before):
    # a trial step sets them to None; replays would then add to places that no optimizer reads
    steps = RecordedSteps(list(model.parameters()), print, Recorder())
    for _ in range(2):
        steps.accumulate(loss_of(model), given(), 1.0)
    exact = gradients(model, (given(seed=1), 1.0))[0]
    model.weight.grad = None if before is None else torch.full_like(model.weight, before)
    steps.accumulate(loss_of(model), given(seed=1), 1.0)
    assert torch.allclose(model.weight.grad, exact + (before or 0.0))
    assert model.unused.grad is None


def test_a_failed_recording_leaves_the_gradients_as_they_were(model):
    def refuse(run, earlier):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    steps = RecordedSteps(list(model.parameters()), print, refuse)
    steps.accumulate(loss_of(model), given(), 1.0)
    before = model.weight.grad.clone()
    with pytest.raises(CannotRecord, match=r"operation not permitted when stream is capturing$"):
        steps.accumulate(loss_of(model), given(), 1.0)
    assert torch.equal(model.weight.grad, before)
    assert model.unused.grad is None


def test_an_input_that_may_hide_tensors_is_not_recorded(model):
    class Opaque:
        pass

    steps = RecordedSteps(list(model.parameters()), print, Recorder())
    with pytest.raises(CannotRecord, match="the model's input holds a Opaque"):
        steps.accumulate(loss_of(model), Given(torch.zeros(1, 3), {"bias": Opaque()}), 1.0)


def test_the_order_of_a_mapping_makes_no_other_shape_and_swaps_no_tensors(model):
    def loss(given):
        return (model(given["latents"]).flatten() + given["bias"]).square()

    batches = [{"latents": torch.randn(2, 3), "bias": torch.randn(2)} for _ in range(3)]
    recorder = Recorder()
    steps = RecordedSteps(list(model.parameters()), print, recorder)
    for batch in batches:
        for names in (("latents", "bias"), ("bias", "latents")):
            losses = steps.accumulate(loss, {name: batch[name] for name in names}, 1.0)
            assert torch.equal(losses, loss(batch).detach())
    assert recorder.recordings == 1
