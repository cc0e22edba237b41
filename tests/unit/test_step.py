"""One optimizer step: the source of its randomness."""

import math
from itertools import repeat
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from difftrain import FlowMatching
from difftrain.data.streaming.rounds import Position
from difftrain.data.streaming.stream import MicroBatch
from difftrain.errors import NotFinite
from difftrain.steps import step
from difftrain.steps.optimizers import AdamWBf16
from difftrain.steps.schedules import Constant
from difftrain.types import Batch


@pytest.fixture
def run():
    """Return the state of a training of one weight, with what a step needs from a plan."""
    denoiser = nn.Linear(1, 1, bias=False)
    config = SimpleNamespace(
        seed=1, gradient_accumulation_steps=2, max_grad_norm=1.0, learning_rate=0.1, lr_warmup_steps=0,
        mixed_precision="no", on_nan="stop", on_nan_limit=3,
    )  # fmt: skip
    family = SimpleNamespace(tokens=lambda batch: {"target": 4})
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    step.remember_rates(optimizer)
    return step.TrainingState(
        plan=SimpleNamespace(config=config, family=family, schedule=Constant(), optimizer=AdamWBf16()),
        accelerator=Accelerator(mixed_precision="no"),
        denoiser=denoiser,
        bare_denoiser=denoiser,
        noise_process=FlowMatching(),
        optimizer=optimizer,
        built_with=[],
        total_steps=10,
    )


def micro_batches(*sizes, weight=None):
    """Yield micro-batches of one step after another, with this many samples each."""
    weight = 1 / sum(sizes) if weight is None else weight
    while True:
        for number, size in enumerate(sizes, 1):
            yield MicroBatch(
                batch=Batch(
                    latents=torch.zeros(size, 1, 2, 2),
                    references=[],
                    text={},
                    keys=tuple(f"edits/{number}-{index}" for index in range(size)),
                ),
                weight=weight,
                position=Position(epoch=0, samples=2 * number),
                ends_step=number == len(sizes),
            )


def endless():
    return micro_batches(2, 2)


def losses_of(monkeypatch, *values):
    """Give the micro-batches these losses for a weight of 1, one value or one per sample, over and over."""
    given = [value for _ in range(20) for value in values]

    def batch_loss(run, batch, generator):
        value = torch.tensor(given.pop(0))
        return run.denoiser.weight.view(1) * value.expand(len(batch.latents))

    monkeypatch.setattr(step, "batch_loss", batch_loss)


def test_what_layers_draw_is_not_what_the_noise_is_drawn_from(run, monkeypatch):
    # Both streams once had one seed: a drawn guidance then rose and fell with the noise level of its sample.
    drawn = []

    def record(run, batch, generator):
        drawn.append((torch.rand(4).tolist(), torch.rand(4, generator=generator).tolist()))
        return run.denoiser(torch.ones(2, 1)).squeeze(1)

    monkeypatch.setattr(step, "batch_loss", record)
    step.take_step(run, endless())
    assert all(by_layers != by_noise for by_layers, by_noise in drawn)
    assert len({str(pair) for pair in drawn}) == 2


def test_equal_steps_draw_equally_and_steps_differ(run, monkeypatch):
    drawn = []

    def record(run, batch, generator):
        drawn.append((torch.rand(2).tolist(), torch.rand(2, generator=generator).tolist()))
        return run.denoiser(torch.ones(2, 1)).squeeze(1)

    monkeypatch.setattr(step, "batch_loss", record)
    for number in (0, 1, 0):
        run.step = number
        step.take_step(run, endless())
    first, second, again = drawn[:2], drawn[2:4], drawn[4:]
    assert first == again
    assert first != second


def test_four_samples_and_one_give_the_gradient_of_five(run, monkeypatch):
    losses_of(monkeypatch, [1.0, 2.0, 3.0, 4.0], [10.0])
    before = run.denoiser.weight.item()
    result = step.take_step(run, micro_batches(4, 1))
    assert result.grad_norm == pytest.approx(4.0)
    assert result.loss == pytest.approx(4.0 * before)
    assert result.samples == 5


def test_a_batch_that_only_keeps_in_step_counts_nothing(run, monkeypatch):
    losses_of(monkeypatch, 5.0)
    result = step.take_step(run, micro_batches(2, weight=0.0))
    assert (result.grad_norm, result.loss, result.samples) == (0.0, 0.0, 0)


def test_gradients_are_scaled_down_to_max_grad_norm(run, monkeypatch):
    losses_of(monkeypatch, 8.0)
    run.plan.config.max_grad_norm = 0.5
    before = run.denoiser.weight.item()
    result = step.take_step(run, endless())
    assert result.grad_norm == pytest.approx(8.0)
    assert run.denoiser.weight.item() == pytest.approx(before - 0.1 * 0.5, abs=1e-6)


def test_max_grad_norm_of_zero_leaves_gradients_as_they_are(run, monkeypatch):
    losses_of(monkeypatch, 8.0)
    run.plan.config.max_grad_norm = 0.0
    before = run.denoiser.weight.item()
    result = step.take_step(run, endless())
    assert result.grad_norm == pytest.approx(8.0)
    assert run.denoiser.weight.item() == pytest.approx(before - 0.1 * 8.0, abs=1e-6)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_never_applied(run, monkeypatch, value, limit):
    losses_of(monkeypatch, 1.0, value)
    run.plan.config.max_grad_norm = limit
    before = run.denoiser.weight.item()
    with pytest.raises(NotFinite):
        step.take_step(run, endless())
    assert run.denoiser.weight.item() == before
    assert run.denoiser.weight.grad is None
    assert (run.step, run.position) == (0, Position())


def test_a_gradient_that_is_not_finite_counts_beside_a_finite_loss(run, monkeypatch):
    def batch_loss(run, batch, generator):
        return (run.denoiser.weight.view(1) * 0).sqrt().expand(len(batch.latents))  # 0, with an infinite slope

    monkeypatch.setattr(step, "batch_loss", batch_loss)
    with pytest.raises(NotFinite, match="step 1: the norm of the gradient is nan"):
        step.take_step(run, endless())


def test_the_message_names_step_samples_and_causes(run, monkeypatch):
    losses_of(monkeypatch, [1.0, 1.0], [math.nan, 1.0])
    run.step, run.plan.config.max_grad_norm = 6, 0.0
    with pytest.raises(NotFinite) as raised:
        step.take_step(run, endless())
    text = str(raised.value)
    assert text.startswith("step 7: the loss is nan, with sample edits/2-0\nhint: likely causes: learning_rate 0.1")
    assert "max_grad_norm 0" in text
    assert "on_nan = skip" in text


def test_skip_leaves_the_update_out_and_continues(run, monkeypatch):
    run.plan.config.on_nan = "skip"
    losses_of(monkeypatch, math.nan, 1.0, 1.0, 1.0)
    before = run.denoiser.weight.item()
    batches = endless()
    left_out, applied = step.take_step(run, batches), step.take_step(run, batches)
    assert (left_out.skipped, applied.skipped) == (True, False)
    assert math.isnan(left_out.loss)
    assert run.denoiser.weight.item() == pytest.approx(before - 0.1, abs=1e-6)
    assert (run.step, run.skipped, run.skipped_in_a_row) == (2, 1, 0)


def test_skip_gives_up_after_so_many_in_a_row(run, monkeypatch):
    run.plan.config.on_nan = "skip"
    losses_of(monkeypatch, *repeat(1.0, 4), *repeat(math.nan, 8))
    batches = endless()
    results = [step.take_step(run, batches) for _ in range(4)]
    assert [result.skipped for result in results] == [False, False, True, True]
    with pytest.raises(NotFinite, match="3 updates in a row were skipped"):
        step.take_step(run, batches)
