"""The state of a training: the model, its optimizer, and its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from difftrain.contracts import NoiseProcess, OptimizerFactory
from difftrain.data.streaming.rounds import Position
from difftrain.data.streaming.stream import MicroBatch, StreamPosition
from difftrain.model.block_swapping import SwappedBlocks
from difftrain.steps.look_ahead import LookAhead
from difftrain.steps.optimizer_state import Settings, bare
from difftrain.steps.recorded_steps import RecordedSteps
from difftrain.steps.sharding import release_whole_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

    from difftrain.planning.run_plan import RunPlan


@dataclass(kw_only=True)
class TrainingState:
    """The model in training and everything that changes it."""

    plan: RunPlan
    accelerator: Accelerator
    denoiser: nn.Module
    """Wrapped by accelerate; training calls only this one."""
    bare_denoiser: nn.Module
    """The same weights without a wrapper."""
    noise_process: NoiseProcess
    optimizer: torch.optim.Optimizer
    built_with: Settings
    """Settings of the optimizer's groups before the first step of this process."""
    total_steps: int
    compiled: bool = False
    """Whether torch.compile compiles the model's blocks in training."""
    swapped: SwappedBlocks | None = None
    """Blocks whose frozen weights wait on the host; None where the model is sharded over processes."""
    recorded: RecordedSteps | None = None
    """Forwards and backwards recorded as CUDA graphs; None launches their kernels one by one."""
    ahead: LookAhead = field(default_factory=LookAhead)
    """The next step's first micro-batch, where steps are recorded."""
    data: Mapping[str, str] = field(default_factory=dict)
    """What each dataset holds, see :func:`difftrain.training.agreement.data_facts`."""
    step: int = 0
    """Optimizer steps done."""
    position: StreamPosition = field(default_factory=Position)
    skipped: int = 0
    """Updates of the whole run that were skipped because they were not finite."""
    skipped_in_a_row: int = 0
    updating: bool = False
    """True while the optimizer writes: if the run ends then, only some of the weights are new."""
    make_room: Callable[[], bool] = lambda: False
    """Called when a step has run out of memory: lets the next try keep less; False if there is nothing to give up."""
    times_room_made: int = 0
    room_to_encode: float = 0.0
    """Bytes that encoding images beside a step takes."""
    last_good_batch: MicroBatch | None = None
    """A batch that gave a finite loss in the last good step."""

    @property
    def trained(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_trained]

    @property
    def named_trained(self) -> list[tuple[str, nn.Parameter]]:
        return [named for named in self.bare_denoiser.named_parameters() if named[1].requires_grad]

    @property
    def evaluates_others(self) -> bool:
        """Whether the optimizer evaluates at other weights than it trains."""
        return type(self.plan.optimizer).evaluating is not OptimizerFactory.evaluating

    def clear_gradients(self) -> None:
        """Forget the gradients of a step."""
        if self.recorded is None:
            self.optimizer.zero_grad()
        else:
            self.recorded.clear_gradients()

    def drop_recordings(self) -> bool:
        """Free the memory of recorded steps, for the time being; False if there was none."""
        return self.recorded is not None and self.recorded.drop()

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Within it, compiled blocks run as they are written: compiling them for each image size takes too long."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside this context the trained weights are those to validate and save; on exit they are restored exactly.

        This undoes any rounding of the optimizer's way there and back: a run must not depend on how often it validates,
        and only the main process does.
        """
        trained = self.trained if self.evaluates_others else []
        before = [parameter.detach().clone() for parameter in trained]
        try:
            with self.plan.optimizer.evaluating(bare(self.optimizer)):
                yield
        finally:
            release_whole_weights(self.bare_denoiser)
            with torch.no_grad():
                for parameter, kept in zip(trained, before, strict=True):
                    parameter.copy_(kept)

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.plan.config.mixed_precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """Enter it for each forward: one context around the loop would keep stale casts of trained weights."""
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, dtype=self.compute_dtype)
