"""Fits a run to its device before the first step: attention kernel, compiled blocks, and what is recomputed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from difftrain.data.streaming.coming_batches import ComingBatches
from difftrain.errors import ConfigError, ModelError
from difftrain.model.attention.choose_kernel import fastest_attention
from difftrain.model.gpu_memory import available
from difftrain.model.tuned_blocks import TunedBlocks
from difftrain.planning.combinations import can_compile, nearest
from difftrain.planning.forecast.modes import ROOM, STEPS_WORTH_COMPILING
from difftrain.steps.optimizer_bytes import optimizer_bytes
from difftrain.steps.training_state import TrainingState
from difftrain.training.fitting.choose_swapping import swap_what_does_not_fit
from difftrain.training.fitting.make_room import let_steps_make_room
from difftrain.training.fitting.warm_up import Compiling, compile_for, shapes_to_compile, tell_graphs_apart, trial_step
from difftrain.types import Batch, Reporter

TRIED_BLOCKS = 4
"""Blocks whose activations are kept for a moment, to measure what one takes."""


def fit_to_device(state: TrainingState, coming: ComingBatches | None, reporter: Reporter) -> Sequence[str] | None:
    """Choose and measure with the largest batch of the run, and compile; no weight and no draw of a step changes.

    Args:
        coming: The batches of the run; None where the data source cannot tell.

    Returns:
        Names of the batch shapes that blocks are compiled for; None if they are not compiled.

    Raises:
        ConfigError: If the config asks for what does not go together.
        ModelError: If compiled blocks have wrong gradients, and the config insists on them.
        torch.OutOfMemoryError: If the largest batch does not fit even with all activations recomputed.
    """
    config, device = state.plan.config, state.accelerator.device
    looks_ahead = device.type == "cuda" or config.dynamo_backend not in ("auto", "no")
    shapes = coming.shapes if coming and looks_ahead else ()
    backend = _backend(state, len(shapes) or 1, reporter)
    batch = coming.read(shapes[0]) if coming and shapes and (device.type == "cuda" or backend) else None
    if batch is not None and device.type == "cuda" and config.attention_mechanism == "auto":
        calls = state.plan.family.attention_shapes(batch, state.bare_denoiser)
        reporter.say(fastest_attention(calls, device, state.compute_dtype))
    blocks = _tuned_blocks(state, backend)
    if blocks is None:
        if batch is not None and device.type == "cuda":
            swap_what_does_not_fit(state, partial(_peak, state, batch), _beside_a_step(state), reporter)
        return None
    state.compiled = blocks.compiled
    if batch is None or coming is None:
        return [] if blocks.compiled else None
    compiled = shapes_to_compile(shapes, config.compile_shapes_limit, reporter) if blocks.compiled else []
    compiling = Compiling.begin() if blocks.compiled else None
    if compiling:
        tell_graphs_apart(state.compute_dtype)
        with reporter.phase(f"compile 1 of {len(compiled)}: {compiled[0].name}"):
            blocks.watched = True
            blocks.unwatched = state.swapped or ()
            swap_what_does_not_fit(state, partial(_peak, state, batch), _beside_a_step(state), reporter)
        _check_compiled(state, blocks, reporter)
    elif device.type == "cuda":
        swap_what_does_not_fit(state, partial(_peak, state, batch), _beside_a_step(state), reporter)
    if config.gradient_checkpointing == "auto" and device.type == "cuda":
        _keep_what_fits(state, blocks, batch, reporter)
        let_steps_make_room(state, blocks, reporter)
    if compiling is None or not blocks.compiled:  # it may have turned out wrong
        return None
    compile_for(state, coming, compiled[1:], reporter, before=1)
    reporter.say(compiling.summary(len(compiled)))
    if left_out := compiling.left_out():
        reporter.say(f"warning: {left_out}")
    return [shape.name for shape in compiled]


def _tuned_blocks(state: TrainingState, backend: str | None) -> TunedBlocks | None:
    """Return the model's blocks as the config wants them; None if it is left to the model to recompute all or nothing.

    Raises:
        ConfigError: If some of the blocks should be recomputed, and the family names none.
    """
    family, recompute = state.plan.family, state.plan.config.gradient_checkpointing
    if recompute == "auto" and state.accelerator.device.type != "cuda":
        recompute = False
    interval = (state.plan.config.gradient_checkpointing_interval or 1) if recompute is True else 1
    if backend is None and recompute != "auto" and interval == 1:
        if recompute:
            family.enable_checkpointing(state.bare_denoiser)
        return None
    blocks = family.blocks(state.bare_denoiser)
    if interval > 1 and not blocks:
        raise ConfigError(
            f"gradient_checkpointing_interval {interval}: model family {family.name!r} names no blocks to choose "
            'from\nhint: set "gradient_checkpointing_interval": 1, which recomputes as the model does it'
        )
    return TunedBlocks(blocks, backend=backend, recompute=bool(recompute), interval=interval)


def _check_compiled(state: TrainingState, blocks: TunedBlocks, reporter: Reporter) -> None:
    with reporter.phase("compare compiled with uncompiled gradients"):
        try:
            fault = blocks.fault(keeping_too=state.plan.config.gradient_checkpointing == "auto")
        except torch.OutOfMemoryError:  # uncompiled blocks need more
            torch.cuda.empty_cache()
            fault = None
    if fault is None:
        return
    if state.plan.config.dynamo_backend != "auto":
        raise ModelError(
            f'dynamo_backend {state.plan.config.dynamo_backend}: {fault}\nhint: set dynamo_backend to "no"'
        )
    blocks.compiled = state.compiled = False
    reporter.say(f"the model is not compiled: {fault}")


def _backend(state: TrainingState, shapes: int, reporter: Reporter) -> str | None:
    """Return the backend of torch.compile, and say why it is or is not used on a GPU; None does not compile."""
    plan, device = state.plan, state.accelerator.device
    wanted: str = plan.config.dynamo_backend
    if wanted == "no" or (wanted == "auto" and device.type != "cuda"):
        return None
    obstacle = _obstacle(state)
    if wanted != "auto":
        if obstacle:
            raise ConfigError(f'dynamo_backend {wanted}: {obstacle}\nhint: or set dynamo_backend to "auto" or "no"')
        return wanted
    steps = state.total_steps - state.step
    if obstacle is None and importlib.util.find_spec("triton") is None:
        obstacle = "the package triton is not installed"
    if obstacle is None and steps < STEPS_WORTH_COMPILING * shapes:
        sizes = "that takes a minute" if shapes == 1 else f"that takes a minute for each of {shapes} image sizes"
        obstacle = f"{sizes}, and {steps} steps are left"
    if obstacle:
        reporter.say(f"the model is not compiled: {obstacle}")
        return None
    return "inductor"


def _obstacle(state: TrainingState) -> str | None:
    quantizer, family = state.plan.quantizer, state.plan.family
    if quantizer is not None and not quantizer.can_compile:
        known: Any = state.plan.plugins.registry.all("quantizer")
        able = ", ".join(nearest(type(quantizer), known, can_compile))
        return f"torch.compile does not take weights of {quantizer.name}; those of {able} it takes"
    if not family.blocks(state.bare_denoiser):
        return f"model family {family.name!r} names no blocks"
    return None


def _keep_what_fits(state: TrainingState, blocks: TunedBlocks, batch: Batch, reporter: Reporter) -> None:
    """Let as many blocks keep their activations as the GPU has room for, measured on the largest batch."""
    limit = ROOM * available(state.accelerator.device) - _beside_a_step(state)
    with reporter.phase("measure memory"):
        least = _peak(state, batch)
        blocks.kept = min(TRIED_BLOCKS, blocks.count)
        each = max(1.0, (_peak_or_more(state, batch, limit) - least) / blocks.kept)
        blocks.kept = max(0, min(blocks.count, int((limit - least) / each)))
        peak = _peak_or_more(state, batch, limit)
        while peak > limit and blocks.kept:
            blocks.kept = blocks.kept * 3 // 4
            peak = _peak_or_more(state, batch, limit)
    reporter.say(
        f"gradient_checkpointing auto: {blocks.kept} of {blocks.count} blocks keep their activations, the others "
        f"recompute them; {peak / 2**30:.1f} of {available(state.accelerator.device) / 2**30:.1f} GiB in use"
    )


def _peak_or_more(state: TrainingState, batch: Batch, limit: float) -> float:
    """Return the peak, or more than the limit if memory ran out."""
    try:
        return _peak(state, batch)
    except torch.OutOfMemoryError:
        state.optimizer.zero_grad()
        torch.cuda.empty_cache()
        return 2 * limit


def _peak(state: TrainingState, batch: Batch) -> float:
    """Return the bytes at the peak of one forward and backward; the gradients are dropped."""
    device = state.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trial_step(state, batch)
    if device.type != "cuda":
        return 0.0
    peak = float(torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _beside_a_step(state: TrainingState) -> float:
    """Return a bound of what is not yet there while steps are tried.

    Gradients and optimizer state, and the encoder of images on demand.
    """
    return state.room_to_encode + sum(_bytes_of_update(state, parameter) for parameter in state.trained)


def _bytes_of_update(state: TrainingState, parameter: torch.nn.Parameter) -> float:
    """Four numbers for each weight of an adapter. A whole model has no room for a bound, so its state is measured."""
    if not state.plan.adapter.trains_base:
        return 4 * 4 * parameter.numel()
    return parameter.nbytes + parameter.numel() * optimizer_bytes(state.plan.optimizer, parameter.dtype)
