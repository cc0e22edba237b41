"""One optimizer step: noise, prediction, loss, backward, update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from difftrain.data.seeding import derive_seed
from difftrain.data.streaming.stream import MicroBatch
from difftrain.errors import DataError, PluginError
from difftrain.steps.noise_levels import shift_sigma
from difftrain.steps.not_finite import leave_out
from difftrain.steps.optimizer_state import bare
from difftrain.steps.sharding import whole
from difftrain.steps.tally import Tally
from difftrain.steps.training_state import Trainee
from difftrain.types import Batch, NoisyBatch, StepResult


def take_step(run: Trainee, micro_batches: Iterator[MicroBatch]) -> StepResult:
    """Accumulate the gradients of some micro-batches and update the adapter once.

    The loss of the step is the mean over the samples of all its micro-batches and processes. Everything random is
    drawn from seeds of (run, step, micro-batch, process): a resumed run repeats it.

    Raises:
        NotFinite: If the loss or the gradient is NaN or infinite, unless ``on_nan`` skips such updates. The weights,
            the step and the position are as before.
        DataError: If there is no micro-batch left.
    """
    started = time.perf_counter()
    learning_rate = _set_learning_rates(run)
    tally = Tally()
    micro = None
    for number, micro in enumerate(micro_batches):
        noise_generator = seed_draws(run, number)
        with nullcontext() if micro.ends_step else run.accelerator.no_sync(run.denoiser):
            losses = batch_loss(run, micro.batch, noise_generator)
            run.accelerator.backward(losses.sum() * micro.weight)
        tally.add(micro, losses.detach(), run.plan.family.tokens(micro.batch))
        if micro.ends_step:
            break
    if micro is None:
        raise DataError(f"the data ends after step {run.step}, and the run is to have {run.total_steps}")
    grad_norm = _clip_gradients(run)
    loss, samples, tokens = tally.over_processes(run.accelerator)
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if finite:
        _update(run)
        run.proven_with = micro
        run.skipped_in_a_row = 0
    else:
        run.optimizer.zero_grad()
        leave_out(run, tally, loss, grad_norm)
    run.step += 1
    run.position = micro.position
    seconds = time.perf_counter() - started
    return StepResult(
        step=run.step,
        loss=loss,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        seconds=seconds,
        samples=samples,
        epoch=run.position.epoch,
        skipped=not finite,
        metrics={"tokens_per_second": tokens / seconds} | _memory(run.accelerator.device),
    )


def seed_draws(run: Trainee, number: int) -> torch.Generator:
    """Seed what layers and families draw by themselves, dropout and guidance; gives the generator of the noise.

    Args:
        number: Of the micro-batch within the step.
    """
    place = (run.step, number, run.accelerator.process_index)
    seed = run.plan.config.seed
    torch.manual_seed(derive_seed(seed, "layers", *place))
    return torch.Generator().manual_seed(derive_seed(seed, "step", *place))


def _clip_gradients(run: Trainee) -> float:
    """Norm of all gradients before they are scaled down to ``max_grad_norm``; 0 leaves them as they are."""
    limit = run.plan.config.max_grad_norm
    if limit > 0:
        return float(whole(run.accelerator.clip_grad_norm_(run.trained, limit)))
    gradients = [parameter.grad for parameter in run.trained if parameter.grad is not None]
    return float(whole(torch.nn.utils.get_total_norm(gradients)))


def _update(run: Trainee) -> None:
    run.updating = True
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.updating = False


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
    """Loss of each sample, [B], at given noise levels [B] and noise shaped as the latents."""
    device = run.accelerator.device
    batch = batch.to(device, run.compute_dtype)
    noisy = run.noise_process.add_noise(batch.latents, sigma.to(device), noise.to(device))
    prediction = predict(run, denoiser, noisy, batch)
    losses = run.plan.loss.compute(prediction, noisy, batch)
    if losses.shape != (len(prediction),):
        raise PluginError(
            f"loss {run.plan.loss.name!r} gave the shape {tuple(losses.shape)} for a batch of {len(prediction)}\n"
            "hint: compute() must return one number a sample, [B]"
        )
    return losses


def predict(run: Trainee, denoiser: nn.Module, noisy: NoisyBatch, batch: Batch) -> Tensor:
    """The model's prediction for the target, shaped as it: family, then the flavour's references, then forward."""
    family, flavour = run.plan.family, run.plan.flavour
    model_input = family.build_input(noisy, batch, run.bare_denoiser)
    if batch.references:
        model_input = flavour.extend_input(family, model_input, batch)
    with run.autocast():
        return family.predict(denoiser, model_input)


def remember_rates(optimizer: torch.optim.Optimizer) -> None:
    """Keep in each group the rate that it was built with, under the name that torch's own schedulers use."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])


def _set_learning_rates(run: Trainee) -> float:
    """Give every group its rate for the coming step; gives the one to report."""
    config = run.plan.config
    factor = run.plan.schedule.factor(run.step, config.lr_warmup_steps, run.total_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = float(group["initial_lr"] * factor)
    own = run.plan.optimizer.rate(bare(run.optimizer))
    return float(run.optimizer.param_groups[0]["lr"] if own is None else own)
