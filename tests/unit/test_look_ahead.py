"""The next step's batch is prepared while the GPU computes, and no number changes by it."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from test_recorded_steps import Recorder
from torch import nn

from difftrain import FlowMatching
from difftrain.data.streaming.rounds import Position
from difftrain.data.streaming.stream import MicroBatch
from difftrain.errors import DataError
from difftrain.steps import step
from difftrain.steps.look_ahead import LookAhead
from difftrain.steps.losses import MeanSquaredError
from difftrain.steps.noise_levels import UniformSampler
from difftrain.steps.optimizers import AdamWBf16
from difftrain.steps.recorded_steps import RecordedSteps
from difftrain.steps.schedules import Constant
from difftrain.types import Batch

STEPS = 6


class Family:
    """Draws a guidance in the model's input, and something in its forward, as dropout would."""

    def __init__(self, told):
        self.told = told

    def tokens(self, batch):
        return {"target": 4}

    def sigma_shift(self, latents):
        return 1.0

    def build_input(self, noisy, batch, denoiser):
        self.told.append("prepare")
        return {"noisy": noisy.noisy, "guidance": torch.rand(len(batch.latents))}

    def predict(self, denoiser, model_input):
        noisy = model_input["noisy"]
        return denoiser(noisy) * model_input["guidance"].view(-1, 1, 1, 1) + 0.1 * torch.rand(noisy.shape)


class NeverAhead(LookAhead):
    def look(self, micro_batches, prepare):
        pass


def new_run(ahead, told):
    torch.manual_seed(0)
    denoiser = nn.Linear(2, 2)
    config = SimpleNamespace(
        seed=1, max_grad_norm=1.0, learning_rate=0.1, lr_warmup_steps=0, mixed_precision="no", on_nan="stop",
        on_nan_limit=3,
    )  # fmt: skip
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    step.remember_rates(optimizer)
    plan = SimpleNamespace(
        config=config, family=Family(told), flavour=None, schedule=Constant(), optimizer=AdamWBf16(),
        timestep_sampler=UniformSampler(), loss=MeanSquaredError(),
    )  # fmt: skip
    state = step.TrainingState(
        plan=plan, accelerator=Accelerator(mixed_precision="no", cpu=True), denoiser=denoiser, bare_denoiser=denoiser,
        noise_process=FlowMatching(), optimizer=optimizer, built_with=[], total_steps=STEPS, ahead=ahead,
    )  # fmt: skip
    state.recorded = RecordedSteps(state.trained, told.append, Recorder())
    return state


def micro_batches(count=2, taken=None, fails_at=None):
    for number in range(100):
        if taken is not None:
            taken.append(number)
        if number == fails_at:
            raise DataError("a file has gone")
        batch = Batch(latents=torch.full((1, 1, 2, 2), float(number)), references=[], text={}, keys=(str(number),))
        position = Position(samples=number + 1)
        yield MicroBatch(batch=batch, weight=1 / count, position=position, ends_step=number % count == count - 1)


def train(ahead, told, count=2):
    state, batches = new_run(ahead, told), micro_batches(count)
    results = [step.take_step(state, batches) for _ in range(STEPS)]
    return [(result.loss, result.grad_norm) for result in results], [one.detach().clone() for one in state.trained]


@pytest.mark.parametrize("count", [1, 2])
def test_losses_and_weights_are_those_without_looking_ahead(count):
    (losses, weights), (others, other_weights) = train(LookAhead(), [], count), train(NeverAhead(), [], count)
    assert losses == others
    assert all(map(torch.equal, weights, other_weights))
    assert len(set(losses)) == STEPS


def test_a_batch_is_prepared_before_the_step_before_it_waits(monkeypatch):
    told = []
    clip = step._clip_gradients
    monkeypatch.setattr(step, "_clip_gradients", lambda state: told.append("wait") or clip(state))
    state, taken = new_run(LookAhead(), told), []
    batches = micro_batches(count=1, taken=taken)
    for _ in range(STEPS):
        step.take_step(state, batches)
    assert told == ["prepare", "prepare", "wait", *["prepare", "wait"] * (STEPS - 2), "wait"]
    assert taken == list(range(STEPS)), "none is taken for a step that never comes"
    assert state.position == Position(samples=STEPS)


def test_a_batch_that_cannot_be_read_stops_only_its_own_step():
    state, batches = new_run(LookAhead(), []), micro_batches(count=1, fails_at=2)
    step.take_step(state, batches)
    step.take_step(state, batches)
    assert state.step == 2
    with pytest.raises(DataError, match="a file has gone"):
        step.take_step(state, batches)


def test_a_batch_taken_ahead_is_not_lost_when_steps_are_no_longer_recorded():
    def losses_of(ahead):
        state, batches = new_run(ahead, []), micro_batches(count=1)
        losses = [step.take_step(state, batches).loss]
        state.recorded = None
        return losses + [step.take_step(state, batches).loss for _ in range(2)]

    assert losses_of(LookAhead()) == losses_of(NeverAhead())


def test_without_memory_to_look_ahead_the_step_prepares_its_batch_itself(monkeypatch):
    expected, _ = train(NeverAhead(), [], 1)
    state, batches = new_run(LookAhead(), []), micro_batches(count=1)
    prepared, calls = step._prepared, []

    def without_memory_at_first(*given):
        calls.append(len(calls))
        if len(calls) % 2 == 0:  # each look ahead, and the step itself then succeeds
            raise torch.OutOfMemoryError
        return prepared(*given)

    monkeypatch.setattr(step, "_prepared", without_memory_at_first)
    losses = [step.take_step(state, batches) for _ in range(STEPS)]
    assert [(one.loss, one.grad_norm) for one in losses] == expected
    assert len(calls) == 2 * STEPS - 1


def test_what_an_update_draws_does_not_depend_on_looking_ahead(monkeypatch):
    drawn = {}
    for name, ahead in (("ahead", LookAhead()), ("never", NeverAhead())):
        state, batches, found = new_run(ahead, []), micro_batches(count=1), []
        update = state.optimizer.step
        state.optimizer.step = lambda update=update, found=found: (found.append(torch.rand(1).item()), update())
        for _ in range(3):
            step.take_step(state, batches)
        drawn[name] = found
    assert drawn["ahead"] == drawn["never"]
