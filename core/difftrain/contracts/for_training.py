"""Contracts of what is trained and how: adapters, optimizers, schedules, quantizers, noise levels, losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from difftrain.config.options import Options
from difftrain.types import Batch, NoisyBatch, Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Adapter(Options, ABC):
    """Trainable weights beside a frozen model: ``lora_type: NAME``. Fields are run options."""

    name: ClassVar[str]

    def fixed(self) -> dict[str, object]:
        """Options, by name, that a resumed run must keep, since they say what the trained weights mean."""
        return self.model_dump(mode="json")

    @abstractmethod
    def attach(self, denoiser: nn.Module, targets: Sequence[str], dtype: torch.dtype) -> None:
        """Put trainable weights of ``dtype`` beside every target module; all else stays frozen.

        Raises:
            ConfigError: If a target names no module.
        """

    @abstractmethod
    def state(self, denoiser: nn.Module) -> dict[str, Tensor]:
        """The raw trainable weights, by name: what a checkpoint keeps for resuming."""

    @abstractmethod
    def load_state(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave.

        Raises:
            CheckpointError: If names or shapes do not fit.
        """

    @abstractmethod
    def write(self, weights: Mapping[str, Tensor], folder: Path, prefix: str) -> None:
        """Write what other programs load into a folder that exists. Called in the main process alone.

        Args:
            weights: By the names of :meth:`state`; each whole and on the CPU, however the model is sharded.
            prefix: What the names of tensors begin with in the file, the family's
                :attr:`~difftrain.contracts.ModelFamily.lora_prefix`.

        Raises:
            OSError: If it cannot be written.
        """

    @abstractmethod
    def read(self, path: Path, prefix: str) -> dict[str, Tensor]:
        """The weights in what :meth:`write` made, by the names of :meth:`state`.

        Their effect is that of the weights that were written; the values may differ where a file keeps them otherwise,
        as with a strength that was folded in.

        Args:
            path: The folder, or the file in it.

        Raises:
            CheckpointError: If it holds no such adapter or is damaged.
            OSError: If it cannot be read.
        """


class OptimizerFactory(Options, ABC):
    """Builds an optimizer: ``optimizer: NAME``; fields are the keys of ``optimizer_config``."""

    name: ClassVar[str]
    parameter_dtype: ClassVar[str] = "float32"
    """dtype of the trained weights under ``mixed_precision: bf16``; with ``no`` they are float32."""
    usual_learning_rates: ClassVar[tuple[float, float] | None] = None
    """Lowest and highest rate that is usual for adapters; outside it the user is warned."""

    @abstractmethod
    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer, ready for its first step; it may make its own groups with rates of their own.

        In each step the core sets every group's ``lr`` to the schedule's factor times what it is here.

        Args:
            parameters: The trained weights, with their names in the model.
        """

    def evaluating(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Within it the trained weights are those to validate, to save and to export.

        For optimizers that train other weights than they arrive at, such as schedule-free ones or averages. On leaving
        it the optimizer must be ready to train on; the core itself puts the weights back as they were, bit for bit.

        Args:
            optimizer: What :meth:`build` gave.
        """
        return nullcontext()

    def rate(self, optimizer: torch.optim.Optimizer) -> float | None:
        """The learning rate to report for the step that is about to be taken; None reports the first group's.

        For optimizers that find their rate themselves.

        Args:
            optimizer: What :meth:`build` gave.
        """
        return None


class Schedule(Options, ABC):
    """Learning-rate schedule: ``lr_scheduler: NAME``. Pure. Fields are run options."""

    name: ClassVar[str]

    @abstractmethod
    def factor(self, step: int, warmup_steps: int, total_steps: int) -> float:
        """What the learning rate is multiplied with in the step that has ``step`` steps before it."""


class Quantizer(Options, ABC):
    """Stores the frozen weights in fewer bits: ``base_model_precision: NAME``. Fields are run options."""

    name: ClassVar[str]

    @abstractmethod
    def check(self) -> str | None:
        """None when the needed packages and hardware are there, else what is missing and how to get it."""

    @abstractmethod
    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        """The quantised layer that takes the place of a linear one, frozen, on ``device``.

        Called while the model is loaded, layer by layer, as soon as a layer's weights are on the device; the layer
        handed over is let go afterwards. What it gives must be a linear module for adapters.

        Args:
            name: The layer's full name in the model.
        """


class TimestepSampler(Options, ABC):
    """Draws noise levels, before the shift. Fields are run options."""

    name: ClassVar[str]

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] noise levels on the CPU, float32, in (0, 1); 0 is clean."""


class Loss(Options, ABC):
    """Compares the prediction with its target. Fields are run options."""

    name: ClassVar[str]
    dataset_options: ClassVar[type[Options] | None] = None
    """Its fields become keys of target sets, and their values reach :meth:`extras`; None asks nothing of a sample."""

    def extras(self, sample: Sample, options: Options) -> Mapping[str, Tensor]:
        """What :meth:`compute` needs of one sample beside its latents, by name: a weight, a mask.

        The core stacks them into :attr:`Batch.extras`. Called each time that a sample is read, from several threads;
        equal samples and options must give equal tensors, so that a resumed run repeats them.

        Args:
            options: Those of :attr:`dataset_options` in the sample's dataset entry.

        Returns:
            Tensors without a batch dimension, of one shape for all samples of a bucket. Integers and truths keep their
            number format, all else becomes float32. The family must not give the same names.
        """
        return {}

    @abstractmethod
    def compute(self, prediction: Tensor, noisy: NoisyBatch, batch: Batch) -> Tensor:
        """Loss of each sample, [B], float32.

        Args:
            prediction: The model's, in the shape of the latents.
            batch: On the device of the prediction, with what :meth:`extras` gave.
        """
