"""One optimizer step: where its randomness comes from."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from difftrain.data.loader import Position
from difftrain.train import step
from difftrain.train.schedule import Constant
from difftrain.types import Batch


@pytest.fixture
def run():
    """A trainee of one weight, with what a step asks of a plan."""
    denoiser = nn.Linear(1, 1, bias=False)
    config = SimpleNamespace(
        seed=1, gradient_accumulation_steps=2, max_grad_norm=1.0, learning_rate=0.1, lr_warmup_steps=0,
        mixed_precision="no",
    )  # fmt: skip
    family = SimpleNamespace(tokens=lambda batch: {"target": 4})
    return step.Trainee(
        plan=SimpleNamespace(config=config, family=family, schedule=Constant()),
        accelerator=Accelerator(mixed_precision="no"),
        denoiser=denoiser,
        bare_denoiser=denoiser,
        optimizer=torch.optim.SGD(denoiser.parameters(), lr=0.1),
        total_steps=10,
    )


def endless():
    while True:
        yield Batch(latents=torch.zeros(2, 1, 2, 2), references=[], text={}), Position(epoch=0, samples=2)


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


def test_gradients_of_micro_batches_are_averaged(run, monkeypatch):
    losses = iter([1.0, 3.0])
    monkeypatch.setattr(step, "batch_loss", lambda run, *_: run.denoiser.weight.view(1) * next(losses))
    before = run.denoiser.weight.item()
    result = step.take_step(run, endless())
    assert result.grad_norm == pytest.approx(2.0)
    assert result.loss == pytest.approx(2.0 * before)
    assert result.samples == 4
