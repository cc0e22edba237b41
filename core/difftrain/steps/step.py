"""One optimizer step: noise, prediction, loss, backward, update."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from difftrain.data.seeding import derive_seed
from difftrain.data.streaming.stream import MicroBatch
from difftrain.errors import DataError, PluginError
from difftrain.steps.noise_levels import shift_sigma
from difftrain.steps.not_finite import leave_out
from difftrain.steps.optimizer_state import bare
from difftrain.steps.recorded_steps import CannotRecord
from difftrain.steps.sharding import whole
from difftrain.steps.tally import Tally
from difftrain.steps.training_state import TrainingState
from difftrain.types import Batch, NoisyBatch, StepResult


def take_step(state: TrainingState, micro_batches: Iterator[MicroBatch]) -> StepResult:
    """Accumulate the gradients of some micro-batches and update the adapter once.

    The loss of the step is the mean over the samples of all its micro-batches and processes. All random draws are
    seeded by (run, step, micro-batch, process), so a resumed run repeats them.

    Raises:
        NotFinite: If the loss or the gradient is NaN or infinite, unless ``on_nan`` skips such updates. The weights,
            the step and the position stay unchanged.
        DataError: If there is no micro-batch left.
        torch.OutOfMemoryError: If memory ran out and :attr:`TrainingState.make_room` found none to free; the weights,
            the step and the position stay unchanged.
    """
    started = time.perf_counter()
    learning_rate = _set_learning_rates(state)
    tally, micro = _accumulate_in_room(state, state.ahead.then(micro_batches))
    state.ahead.done()
    _look_ahead(state, micro_batches)
    norm = _clip_gradients(state)
    loss, samples, tokens = tally.over_processes(state.accelerator)
    grad_norm = float(norm)  # not before: the GPU would wait while the losses are asked for
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if finite:
        _update(state)
        state.last_good_batch = micro
        state.skipped_in_a_row = 0
    else:
        state.clear_gradients()
        leave_out(state, tally, loss, grad_norm)
    state.step += 1
    state.position = micro.position
    seconds = time.perf_counter() - started
    return StepResult(
        step=state.step,
        loss=loss,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        seconds=seconds,
        samples=samples,
        epoch=state.position.epoch,
        skipped=not finite,
        metrics={"tokens_per_second": tokens / seconds} | _memory(state.accelerator.device),
    )


def _look_ahead(state: TrainingState, micro_batches: Iterator[MicroBatch]) -> None:
    """Prepare the next step's first micro-batch before this one waits for the GPU; only a replay leaves the time."""
    if state.recorded is None or state.step + 1 >= state.total_steps:
        return

    def prepare(micro: MicroBatch) -> _Prepared:
        generator = seed_draws(state, 0, step=state.step + 1)
        return _given(state, micro, generator)

    state.ahead.look(micro_batches, prepare)


def _accumulate_in_room(state: TrainingState, micro_batches: Iterator[MicroBatch]) -> tuple[Tally, MicroBatch]:
    """Accumulate one step's gradients; if memory runs out, make room and compute them again from the first on.

    All of them, because some weights may have got a part of the gradient that could not be completed. The same
    micro-batches draw the same numbers again.
    """
    taken: list[MicroBatch] = []
    recorded, may_drop = None, True
    try:
        while True:
            try:
                return _accumulate(state, chain(tuple(taken), _remembered(micro_batches, taken)))
            except torch.OutOfMemoryError:
                dropped = may_drop and state.drop_recordings()
                if not (dropped or state.make_room()):
                    raise
            # only here: the error held on to the tensors of its forward
            state.clear_gradients()
            if not dropped:  # recorded as blocks kept more; and what may have to be compiled now cannot be recorded
                state.times_room_made += 1
                state.drop_recordings()
                recorded, state.recorded = recorded or state.recorded, None
            may_drop = False  # once in a step, or it might never end
            gc.collect()
            if state.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()
    finally:
        state.recorded = recorded or state.recorded


def _remembered(micro_batches: Iterator[MicroBatch], taken: list[MicroBatch]) -> Iterator[MicroBatch]:
    for micro in micro_batches:
        taken.append(micro)
        yield micro


def _accumulate(state: TrainingState, micro_batches: Iterator[MicroBatch]) -> tuple[Tally, MicroBatch]:
    """Return the losses of one step, whose gradients are added up, and its last micro-batch."""
    tally = Tally()
    micro = None
    for number, micro in enumerate(micro_batches):
        noise_generator = seed_draws(state, number)
        with nullcontext() if micro.ends_step else state.accelerator.no_sync(state.denoiser):
            losses = _add_gradients(state, micro, noise_generator)
        tally.add(micro, losses, state.plan.family.tokens(micro.batch))
        if micro.ends_step:
            break
    if micro is None:
        raise DataError(f"the data ends after step {state.step}, but the run needs {state.total_steps} steps")
    return tally, micro


def seed_draws(state: TrainingState, number: int, *, step: int | None = None) -> torch.Generator:
    """Seed the draws of layers and families, such as dropout and guidance; return the generator of the noise.

    Args:
        number: Number of the micro-batch within the step.
        step: Optimizer steps done before it; None takes the state's.
    """
    place = (state.step if step is None else step, number, state.accelerator.process_index)
    seed = state.plan.config.seed
    torch.manual_seed(derive_seed(seed, "layers", *place))
    return torch.Generator().manual_seed(derive_seed(seed, "step", *place))


def _add_gradients(state: TrainingState, micro: MicroBatch, generator: torch.Generator) -> Tensor:
    """Add a micro-batch's gradients to those of its step; return the loss of each sample, [B], detached."""
    with adapter_as_asked(state, micro.batch):  # also in the backward pass, which may recompute the forward
        return _add_gradients_as_asked(state, micro, generator)


def adapter_as_asked(state: TrainingState, batch: Batch) -> AbstractContextManager[None]:
    """Inside this context the adapter has the strength that a batch is trained at."""
    if batch.strength == 1:
        return nullcontext()
    return state.plan.adapter.at_strength(state.bare_denoiser, batch.strength)


def _add_gradients_as_asked(state: TrainingState, micro: MicroBatch, generator: torch.Generator) -> Tensor:
    if state.recorded is not None:
        given = state.ahead.given_for(micro) or _given(state, micro, generator)
        try:
            return state.recorded.accumulate(partial(_loss_of, state, state.bare_denoiser), given, micro.weight)
        except CannotRecord as error:
            state.recorded.say(f"steps are not recorded: {error}")
            state.recorded = None
            losses = _loss_of(state, state.bare_denoiser, given)
    else:
        losses = batch_loss(state, micro.batch, generator)
    state.accelerator.backward(losses.sum() * micro.weight)
    return losses.detach()


def _given(state: TrainingState, micro: MicroBatch, generator: torch.Generator) -> _Prepared:
    """Return a micro-batch as a recording takes it."""
    batch = replace(micro.batch, keys=())  # all else decides which recording fits
    return _prepared(state, batch, *draw_noise(state, batch, generator))


def _clip_gradients(state: TrainingState) -> Tensor:
    """Return the norm of all gradients before they are scaled down to ``max_grad_norm``; 0 does not scale them."""
    limit = state.plan.config.max_grad_norm
    if limit > 0:
        return whole(state.accelerator.clip_grad_norm_(state.trained, limit))
    gradients = [parameter.grad for parameter in state.trained if parameter.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients))


def _update(state: TrainingState) -> None:
    state.updating = True
    state.optimizer.step()
    state.clear_gradients()
    state.updating = False


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}


def batch_loss(state: TrainingState, batch: Batch, generator: torch.Generator) -> Tensor:
    """Return the loss of each sample, [B], at noise levels and noise drawn from ``generator``."""
    return loss_at(state, state.denoiser, batch, *draw_noise(state, batch, generator))


def draw_noise(state: TrainingState, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noise levels, [B], and noise shaped as the latents, on the CPU: every device gets the same."""
    sigma = state.plan.timestep_sampler.sample(len(batch.latents), generator)
    if batch.noise_offsets is not None:
        sigma = torch.sigmoid(torch.logit(sigma) + batch.noise_offsets)
    sigma = shift_sigma(sigma, state.plan.family.sigma_shift(batch.latents))
    return sigma, torch.randn(batch.latents.shape, generator=generator)


def loss_at(state: TrainingState, denoiser: nn.Module, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return the loss of each sample, [B], at given noise levels [B] and noise shaped as the latents."""
    return _loss_of(state, denoiser, _prepared(state, batch, sigma, noise))


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A batch on the device, ready for the forward."""

    batch: Batch
    noisy: NoisyBatch
    model_input: Any


def _prepared(state: TrainingState, batch: Batch, sigma: Tensor, noise: Tensor) -> _Prepared:
    device = state.accelerator.device
    batch = batch.to(device, state.compute_dtype)
    noisy = state.noise_process.add_noise(batch.latents, _sent(sigma, device), _sent(noise, device))
    return _Prepared(batch=batch, noisy=noisy, model_input=input_of(state, noisy, batch))


def _sent(drawn: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on the device. From pinned memory: for other memory the host waits for the GPU."""
    pinned = drawn.pin_memory() if device.type == "cuda" and drawn.device.type == "cpu" else drawn
    return pinned.to(device, non_blocking=True)


def input_of(state: TrainingState, noisy: NoisyBatch, batch: Batch) -> Any:
    """Return the model's input, of the family's own class: the family's part, then the flavour's references."""
    family, flavour = state.plan.family, state.plan.flavour
    model_input = family.build_input(noisy, batch, state.bare_denoiser)
    return flavour.extend_input(family, model_input, batch) if batch.references else model_input


def predict(state: TrainingState, denoiser: nn.Module, model_input: Any) -> Tensor:
    """Return the prediction, shaped as the noisy latents."""
    with state.autocast():
        return state.plan.family.predict(denoiser, model_input)


@torch.no_grad()
def _predict_without_adapter(state: TrainingState, model_input: Any) -> Tensor:
    """Return what the model predicted before it was trained, float32: the target of regularisation sets.

    Of the bare model: DDP may exchange something in each forward, and other processes have no second one.
    """
    with state.plan.adapter.at_strength(state.bare_denoiser, 0):
        return predict(state, state.bare_denoiser, model_input).float()


def _loss_of(state: TrainingState, denoiser: nn.Module, given: _Prepared) -> Tensor:
    noisy = given.noisy
    if given.batch.regularises:  # first: it would need memory beside the activations that the backward pass waits for
        noisy = replace(noisy, target=_predict_without_adapter(state, given.model_input))
    prediction = predict(state, denoiser, given.model_input)
    losses = state.plan.loss.compute(prediction, noisy, given.batch)
    if losses.shape != (len(prediction),):
        raise PluginError(
            f"loss {state.plan.loss.name!r} returned the shape {tuple(losses.shape)} for a batch of {len(prediction)}\n"
            "hint: compute() must return one number per sample, [B]"
        )
    return losses


def remember_rates(optimizer: torch.optim.Optimizer) -> None:
    """Store in each group the rate that it was built with, under the name that torch's own schedulers use."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])


def _set_learning_rates(state: TrainingState) -> float:
    """Set every group's rate for the coming step; return the one to report."""
    config = state.plan.config
    factor = state.plan.schedule.factor(state.step, config.lr_warmup_steps, state.total_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = float(group["initial_lr"] * factor)
    own = state.plan.optimizer.rate(bare(state.optimizer))
    return float(state.optimizer.param_groups[0]["lr"] if own is None else own)
