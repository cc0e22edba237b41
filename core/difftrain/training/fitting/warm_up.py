"""Compiles the model's blocks for each shape of batches before the first step, so that no step waits for it.

Compiled blocks fit one shape each: torch.compile could make code for all of them, but that code is slower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.compiler.config

from difftrain.data.streaming.coming_batches import ComingBatches, ComingShape
from difftrain.data.streaming.stream import MicroBatch
from difftrain.machine.compile_cache import folder_of_compiled
from difftrain.model.attention.choose_kernel import kernels_in_force
from difftrain.output.console import duration
from difftrain.steps.step import adapter_as_asked, loss_at
from difftrain.steps.training_state import TrainingState
from difftrain.types import Batch, Reporter


def trial_step(state: TrainingState, batch: Batch) -> None:
    """Compute a forward and backward as in training; gradients, weights and coming draws stay as they are."""
    state.denoiser.train()
    sigma = torch.full((len(batch.latents),), 0.5)
    noise = torch.zeros_like(batch.latents)
    device = state.accelerator.device
    drawing = [torch.cuda.current_device()] if device.type == "cuda" else []
    gradients = [parameter.grad for parameter in state.trained]
    for parameter in state.trained:
        parameter.grad = None
    try:
        undisturbed = torch.random.fork_rng(drawing), state.accelerator.no_sync(state.denoiser)
        with undisturbed[0], undisturbed[1], adapter_as_asked(state, batch):
            torch.autograd.backward(loss_at(state, state.bare_denoiser, batch, sigma, noise).sum())
    finally:
        for parameter, gradient in zip(state.trained, gradients, strict=True):
            parameter.grad = gradient


def tell_graphs_apart(dtype: torch.dtype) -> None:
    """Let torch.compile use only graphs again that were made with the same attention kernels and number format.

    Its cache knows a graph by the call of the attention, not by the kernel that torch takes for it: without this a run
    with the kernel ``math`` gets ``flash`` from the cache (torch 2.13).
    """
    users = os.environ.get("TORCH_COMPILE_CACHE_KEY_TAG", "")
    torch.compiler.config.cache_key_tag = f"{users} {kernels_in_force()} {dtype}".strip()


def shapes_to_compile(shapes: Sequence[ComingShape], limit: int, reporter: Reporter) -> list[ComingShape]:
    """Return the largest shape and those that come most often, largest first; say it if some are left out."""
    if len(shapes) <= limit:
        return list(shapes)
    reporter.say(
        f"note: batches come in {len(shapes)} shapes, and compile_shapes_limit is {limit}: only the largest and the "
        "most frequent are compiled for now, the others when their first batch comes"
    )
    often = sorted(range(1, len(shapes)), key=lambda number: -shapes[number].times)[: limit - 1]
    return [shapes[number] for number in sorted([0, *often])]


def compile_for(
    state: TrainingState, coming: ComingBatches, shapes: Sequence[ComingShape], reporter: Reporter, *, before: int
) -> None:
    """Compute a trial step for each shape, which compiles what it needs.

    Args:
        before: Shapes that are compiled already, for the count that is shown.
    """
    if not shapes:
        return
    with reporter.phase("compile for the other batch shapes", total=len(shapes)) as phase:
        for number, shape in enumerate(shapes, before + 1):
            phase.begin(f"compile {number} of {before + len(shapes)}: {shape.name}")
            trial_step(state, coming.read(shape))
            phase.advance()


def compile_when_new(
    state: TrainingState, micro_batches: Iterator[MicroBatch], compiled: Sequence[str] | None, reporter: Reporter
) -> Iterator[MicroBatch]:
    """Yield the micro-batches; compile before the first one of each shape that blocks are not compiled for.

    Not within the step, which may be recorded: nothing can be compiled then. When blocks begin to keep less, all shapes
    are new again.

    Args:
        compiled: Names of the shapes that they are; None if they are not compiled at all.
    """
    known = {(name, 0) for name in compiled or ()}
    for micro in micro_batches:
        place = micro.shape, state.times_room_made
        if compiled is not None and micro.shape and place not in known:  # a stream may name no shapes
            known.add(place)
            with reporter.phase(f"compile for batches of {micro.shape}"), suppress(torch.OutOfMemoryError):
                trial_step(state, micro.batch)  # running out of memory is the step's to handle
        yield micro


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """What torch had compiled when this compiling began."""

    began: float
    """In seconds, of a clock that only runs forward."""
    found: int
    """Graphs from the cache, so far in this process."""
    made: int
    folder: Path | None
    """Where graphs are kept; None if they are not."""
    is_new: bool
    """Whether nothing was in that folder."""
    breaks: Mapping[str, int]
    """Why torch.compile left code out so far in this process, and how often."""

    @classmethod
    def begin(cls) -> Compiling:
        folder, seen = folder_of_compiled(), _graphs_so_far()
        return cls(
            began=time.monotonic(),
            found=seen["fxgraph_cache_hit"],
            made=seen["fxgraph_cache_miss"],
            folder=folder,
            is_new=folder is not None and not any(folder.iterdir()),
            breaks=_breaks_so_far(),
        )

    def left_out(self) -> str | None:
        """Return why some code of the blocks runs as it is written; None if all is compiled.

        torch.compile says nothing then. Of a block that recomputes its activations, nothing at all is compiled.
        """
        news = [reason for reason, count in _breaks_so_far().items() if count > self.breaks.get(reason, 0)]
        if not news:
            return None
        lines = [line.strip() for line in news[0].splitlines() if line.strip()]
        told = next((line for line in lines if line.startswith("Explanation:")), lines[0])
        why = told.removeprefix("Explanation:").strip()
        return f"torch.compile left out parts of the blocks, and steps are slower for it: {why}"

    def summary(self, shapes: int) -> str:
        """Return what to tell the user when the blocks are compiled for so many batch shapes."""
        seen = _graphs_so_far()
        found, made = seen["fxgraph_cache_hit"] - self.found, seen["fxgraph_cache_miss"] - self.made
        what = "1 batch shape" if shapes == 1 else f"{shapes} batch shapes"
        text = f"compiling for {what} took {duration(time.monotonic() - self.began)}"
        if self.folder is None or not found + made:
            return text
        if self.is_new:
            return f"{text}; the next run finds the code in {self.folder}"
        return f"{text}; {found} of {found + made} graphs were in {self.folder}"


def _breaks_so_far() -> Mapping[str, int]:
    from torch._dynamo.utils import counters

    return dict(counters["graph_break"])


def _graphs_so_far() -> Mapping[str, int]:
    """Return torch's counts of compiled graphs in this process."""
    # a run that compiles nothing need not wait a second for the compiler
    from torch._dynamo.utils import counters

    return counters["inductor"]
