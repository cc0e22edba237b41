"""One optimizer step: noise, prediction, loss, backward, update."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from difftrain.data.loader import Position
from difftrain.data.seeding import derive_seed
from difftrain.train.noise import add_noise, shift_sigma
from difftrain.types import Batch, NoisyBatch, StepResult

if TYPE_CHECKING:
    from accelerate import Accelerator

    from difftrain.train.plan import RunPlan


@dataclass(kw_only=True)
class Trainee:
    """The model in training and what moves it."""

    plan: RunPlan
    accelerator: Accelerator
    denoiser: nn.Module
    """As wrapped by accelerate; only this one is called in training."""
    bare_denoiser: nn.Module
    """The same weights without a wrapper."""
    optimizer: torch.optim.Optimizer
    total_steps: int
    step: int = 0
    """Optimizer steps done."""
    position: Position = field(default_factory=Position)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.bare_denoiser.parameters() if parameter.requires_grad]

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.plan.config.mixed_precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """Entered for each forward: one context around the loop would keep stale casts of trained weights."""
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, dtype=self.compute_dtype)


def take_step(run: Trainee, batches: Iterator[tuple[Batch, Position]]) -> StepResult:
    """Accumulate the gradients of some micro-batches and update the adapter once.

    Everything random is drawn from seeds of (run, step, micro-batch, process): a resumed run repeats it.
    """
    started = time.perf_counter()
    config, accelerator = run.plan.config, run.accelerator
    learning_rate = _set_learning_rate(run)
    micro_batches = config.gradient_accumulation_steps
    losses, samples, tokens = [], 0, 0
    for micro in range(micro_batches):
        batch, run.position = next(batches)
        place = (run.step, micro, accelerator.process_index)
        # what layers and families draw by themselves, dropout and guidance: another stream than the noise's
        torch.manual_seed(derive_seed(config.seed, "layers", *place))
        noise_generator = torch.Generator().manual_seed(derive_seed(config.seed, "step", *place))
        last = micro == micro_batches - 1
        with nullcontext() if last else accelerator.no_sync(run.denoiser):
            loss = batch_loss(run, batch, noise_generator).mean()
            accelerator.backward(loss / micro_batches)
        losses.append(loss.detach())
        samples += len(batch.latents)
        tokens += sum(run.plan.family.tokens(batch).values()) * len(batch.latents)
    grad_norm = accelerator.clip_grad_norm_(run.trained, config.max_grad_norm or float("inf"))
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    loss_sum, samples, tokens = _over_processes(accelerator, torch.stack(losses).mean(), samples, tokens)
    seconds = time.perf_counter() - started
    return StepResult(
        step=run.step,
        loss=loss_sum / accelerator.num_processes,
        learning_rate=learning_rate,
        grad_norm=float(grad_norm),
        seconds=seconds,
        samples=samples,
        epoch=run.position.epoch,
        metrics={"tokens_per_second": tokens / seconds} | _memory(accelerator.device),
    )


def _over_processes(accelerator: Accelerator, loss: Tensor, samples: int, tokens: int) -> tuple[float, int, int]:
    """Sums over all processes, whose batches may differ in size and shape; in one exchange."""
    # float32 counts exactly up to 16 million
    counts = torch.tensor([samples, tokens], dtype=torch.float32, device=loss.device)
    total = accelerator.reduce(torch.cat([loss.float().view(1), counts]), reduction="sum").tolist()
    return total[0], int(total[1]), int(total[2])


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}


def batch_loss(run: Trainee, batch: Batch, generator: torch.Generator) -> Tensor:
    """Loss of each sample, [B], of noise levels and noise drawn on the CPU from ``generator``.

    Drawing on the CPU gives a run the same noise on every device.
    """
    sigma = run.plan.timestep_sampler.sample(len(batch.latents), generator)
    sigma = shift_sigma(sigma, run.plan.family.sigma_shift(batch.latents))
    noise = torch.randn(batch.latents.shape, generator=generator)
    return loss_at(run, run.denoiser, batch, sigma, noise)


def loss_at(run: Trainee, denoiser: nn.Module, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
    """Loss of each sample, [B], at given noise levels [B] and noise [B, C, h, w]."""
    device = run.accelerator.device
    batch = batch.to(device, run.compute_dtype)
    noisy = add_noise(batch.latents, sigma.to(device), noise.to(device))
    prediction = predict(run, denoiser, noisy, batch)
    return run.plan.loss.compute(prediction, noisy)


def predict(run: Trainee, denoiser: nn.Module, noisy: NoisyBatch, batch: Batch) -> Tensor:
    """The model's velocity for the target, [B, C, h, w]: family, then the flavour's references, then forward."""
    family, flavour = run.plan.family, run.plan.flavour
    model_input = family.build_input(noisy, batch, denoiser)
    if batch.references:
        model_input = flavour.extend_input(family, model_input, batch)
    with run.autocast():
        return family.predict(denoiser, model_input)


def _set_learning_rate(run: Trainee) -> float:
    config = run.plan.config
    factor = run.plan.schedule.factor(run.step, config.lr_warmup_steps, run.total_steps)
    rate = float(config.learning_rate * factor)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate
