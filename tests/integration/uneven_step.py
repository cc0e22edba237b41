"""One step in which two processes have 4 samples and 1; says the gradient of each process on standard error."""

import gc
import sys
from types import SimpleNamespace

import torch
from torch import nn

from difftrain import FlowMatching
from difftrain.data.streaming.rounds import Position
from difftrain.data.streaming.stream import MicroBatch
from difftrain.machine.processes import start_accelerator
from difftrain.steps import step
from difftrain.steps.optimizers import AdamWBf16
from difftrain.steps.schedules import Constant
from difftrain.types import Batch

LOSSES = ([1.0, 2.0, 3.0, 4.0], [10.0])


def main():
    accelerator = start_accelerator()
    bare = nn.Linear(1, 1, bias=False)
    nn.init.ones_(bare.weight)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.0)
    step.remember_rates(optimizer)
    denoiser, optimizer = accelerator.prepare(bare, optimizer)
    own = LOSSES[accelerator.process_index]
    config = SimpleNamespace(seed=1, max_grad_norm=0, learning_rate=0.0, lr_warmup_steps=0, mixed_precision="no")
    run = step.TrainingState(
        plan=SimpleNamespace(
            config=config, family=SimpleNamespace(tokens=lambda batch: {}), schedule=Constant(), optimizer=AdamWBf16()
        ),
        accelerator=accelerator, denoiser=denoiser, bare_denoiser=bare, optimizer=optimizer, built_with=[],
        noise_process=FlowMatching(), total_steps=1,
    )  # fmt: skip
    step.batch_loss = lambda run, batch, generator: run.denoiser(batch.latents).flatten()
    latents = torch.tensor(own).view(-1, 1)
    samples = sum(map(len, LOSSES))
    micro = MicroBatch(
        batch=Batch(latents=latents, references=[], text={}), weight=accelerator.num_processes / samples,
        position=Position(epoch=0, samples=samples), ends_step=True,
    )  # fmt: skip
    result = step.take_step(run, iter([micro]))
    said = f"process {accelerator.process_index}: gradient {result.grad_norm:.6f}, loss {result.loss:.6f}"
    print(said, file=sys.stderr)
    # a wrapped model that outlives its process group aborts every third process when it exits
    del run, denoiser, optimizer, bare
    gc.collect()
    accelerator.end_training()
