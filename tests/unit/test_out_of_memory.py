"""A step that runs out of memory while blocks keep their activations is taken again, and nothing else changes."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from difftrain import FlowMatching
from difftrain.data.streaming.rounds import Position
from difftrain.data.streaming.stream import MicroBatch
from difftrain.model.tuned_blocks import TunedBlocks
from difftrain.steps import step
from difftrain.steps.optimizers import AdamWBf16
from difftrain.steps.schedules import Constant
from difftrain.training.fitting.make_room import let_steps_make_room
from difftrain.types import Batch

BLOCKS = 8


class Said(list):
    """A reporter."""

    say = list.append


class Full(torch.autograd.Function):
    """Runs out of memory in the backward pass, if it should."""

    @staticmethod
    def forward(ctx, hidden, block):
        ctx.block = block
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.block.memory.needs("backward")
        return gradient, None


class Block(nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.memory = memory
        self.inner = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, hidden):
        self.memory.needs("forward")
        return Full.apply(hidden, self) + self.drop(self.inner(hidden))


class Memory:
    """Room for the activations of so many blocks; asked once per pass of the third block."""

    def __init__(self):
        self.room = BLOCKS
        self.passes = "forward"
        self.from_micro_batch = 0
        self.micro_batches = 0
        self.blocks = None

    def needs(self, passes):
        if passes == self.passes and self.micro_batches > self.from_micro_batch and self.blocks.kept > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")


class Run:
    """A training of blocks with dropout on random micro-batches, two in each step."""

    def __init__(self, monkeypatch, processes=1):
        torch.manual_seed(0)
        self.memory, self.said, self.noise = Memory(), Said(), []
        parts = nn.Sequential(*[Block(self.memory) for _ in range(BLOCKS)])
        self.tuned = self.memory.blocks = TunedBlocks(parts, backend=None, recompute=True)
        self.tuned.kept = BLOCKS
        optimizer = torch.optim.Adam(parts.parameters(), lr=0.01)
        step.remember_rates(optimizer)
        config = SimpleNamespace(
            seed=1, max_grad_norm=1.0, learning_rate=0.01, lr_warmup_steps=0, mixed_precision="no", on_nan="stop"
        )
        family = SimpleNamespace(tokens=lambda batch: {"target": 4})
        plan = SimpleNamespace(config=config, family=family, schedule=Constant(), optimizer=AdamWBf16())
        self.state = step.TrainingState(
            plan=plan, accelerator=Accelerator(mixed_precision="no"), denoiser=parts, bare_denoiser=parts,
            noise_process=FlowMatching(), optimizer=optimizer, built_with=[], total_steps=10,
        )  # fmt: skip
        self.batches = self._micro_batches()
        monkeypatch.setattr(step, "batch_loss", self._batch_loss)
        let_steps_make_room(self.state, self.tuned, self.said)

    def _batch_loss(self, state, batch, generator):
        self.memory.micro_batches += 1
        noise = torch.randn(batch.latents.shape, generator=generator)
        self.noise.append((batch.keys[0], float(noise.sum())))
        return state.denoiser(batch.latents + noise).square().mean(1)

    def _micro_batches(self):
        for number in range(20):
            latents = torch.randn(3, 4, generator=torch.Generator().manual_seed(number))
            batch = Batch(latents=latents, references=[], text={}, keys=(str(number),) * 3)
            yield MicroBatch(
                batch=batch, weight=1 / 6, position=Position(epoch=0, samples=3 * number), ends_step=number % 2 == 1
            )

    def take(self, steps):
        return [step.take_step(self.state, self.batches) for _ in range(steps)]

    @property
    def weights(self):
        return torch.cat([weight.detach().flatten() for weight in self.state.trained])


@pytest.mark.parametrize("passes", ["forward", "backward"])
@pytest.mark.parametrize("from_micro_batch", [0, 3])  # the first of the run; the second of the second step
def test_a_step_taken_again_changes_no_bit(monkeypatch, passes, from_micro_batch):
    calm = Run(monkeypatch)
    expected = calm.take(3)
    run = Run(monkeypatch)
    run.memory.room, run.memory.passes, run.memory.from_micro_batch = 6, passes, from_micro_batch
    results = run.take(3)
    assert torch.equal(run.weights, calm.weights)
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours.loss, ours.grad_norm, ours.samples) == (theirs.loss, theirs.grad_norm, theirs.samples)
    assert run.state.position == calm.state.position
    again = from_micro_batch // 2
    assert run.said == [
        f"step {again + 1} ran out of memory and is taken again: from now on 6 of 8 blocks keep their activations"
    ]
    # each micro-batch once with its noise, and those of the failed step up to the failure twice
    failed = run.noise[2 * again : from_micro_batch + 1]
    assert run.noise == [*run.noise[: 2 * again], *failed, *calm.noise[2 * again :]]


def test_blocks_keep_less_until_it_fits_or_nothing_is_left(monkeypatch):
    run = Run(monkeypatch)
    run.memory.room = 1
    run.take(1)
    assert [line.split("from now on ")[1].split()[0] for line in run.said] == ["6", "4", "3", "2", "1"]
    before = run.weights
    run.memory.room = -1
    with pytest.raises(torch.OutOfMemoryError):
        run.take(1)
    assert run.tuned.kept == 0
    assert torch.equal(run.weights, before)
    assert run.state.step == 1


def test_without_a_choice_of_activations_running_out_of_memory_ends_the_step(monkeypatch):
    run = Run(monkeypatch)
    run.state.make_room = step.TrainingState.make_room
    run.memory.room = 1
    with pytest.raises(torch.OutOfMemoryError):
        run.take(1)
    assert run.tuned.kept == BLOCKS


def test_with_several_processes_no_step_is_taken_again(monkeypatch):
    run = Run(monkeypatch)
    state, said = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2)), Said()
    let_steps_make_room(state, run.tuned, said)
    assert not hasattr(state, "make_room")
    assert said[0].startswith("note: a step that runs out of memory ends this run, because it has several processes")


def test_recordings_are_dropped_and_wait_until_the_step_is_done(monkeypatch):
    calm = Run(monkeypatch)
    calm.take(1)
    run = Run(monkeypatch)
    told = []

    def accumulate(*given):
        told.append("accumulate")
        raise torch.OutOfMemoryError

    recorded = SimpleNamespace(
        accumulate=accumulate, drop=lambda: not told.append("drop"), clear_gradients=run.state.optimizer.zero_grad
    )
    monkeypatch.setattr(step, "draw_noise", lambda *given: (None, None))
    monkeypatch.setattr(step, "_prepared", lambda *given: None)
    run.state.recorded = recorded
    run.take(1)
    # once with the memory of the recordings; then without recording, because other blocks keep their activations
    assert told == ["accumulate", "drop", "accumulate", "drop"]
    assert run.state.recorded is recorded
    assert run.state.times_room_made == 1
    assert torch.equal(run.weights, calm.weights)


def test_the_step_after_the_one_taken_again_gets_its_own_data(monkeypatch):
    run = Run(monkeypatch)
    run.memory.room, run.memory.from_micro_batch = 6, 1
    run.take(2)
    assert [key for key, _ in run.noise] == ["0", "1", "0", "1", "2", "3"]
    assert [micro.batch.keys[0] for micro in islice(run.batches, 1)] == ["4"]
