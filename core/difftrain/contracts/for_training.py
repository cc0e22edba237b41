"""Contracts of what is trained and how: adapters, optimizers, schedules, noise levels, losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from difftrain.config.options import Options
from difftrain.errors import PluginError
from difftrain.types import Batch, NoisyBatch, Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from difftrain.contracts.for_models import ModelFamily


class Adapter(Options, ABC):
    """What is trained: weights beside a frozen model, ``lora_type: NAME``, or its own. Fields are run options."""

    name: ClassVar[str]
    trains_base: ClassVar[bool] = False
    """Whether the denoiser's own weights are trained, all of them: ``model_type`` then names it. They are loaded in the
    number format of trained weights, and neither quantised, fused nor swapped."""
    replayable: ClassVar[bool] = False
    """Whether the forward does the same operations for all inputs of one shape, looks at no value on the CPU and
    draws only from torch's generator of the GPU: a training step can then be recorded once and replayed."""

    takes_products: ClassVar[bool] = False
    """Whether the module that takes a target's place passes the keyword arguments of its call on to the target:
    ``fuse_qkv_projections`` computes the target's output beforehand and gives it as ``product``."""

    def fixed(self) -> dict[str, object]:
        """Return the options, by name, that a resumed run must keep because the trained weights depend on them.

        Checkpoints record them, as JSON. What a file says that the options only name belongs here too.
        """
        return self.model_dump(mode="json")

    @property
    def reads_weights(self) -> str | None:
        """The option for which the adapter looks at the values of the frozen weights, which the quantizer then must be
        able to give back; None for adapters that only call the layers."""
        return None

    @property
    def beginning(self) -> str:
        """What :meth:`begin` computes, for its progress bar; empty if that is nothing."""
        return ""

    @property
    def file_note(self) -> str:
        """What :meth:`write` puts into a file that the options do not say, for its header and the model card; usually
        nothing."""
        return ""

    @property
    def validation_strength(self) -> float:
        """Strength at which validation images are drawn; other values than 1 need :meth:`at_strength`."""
        return 1.0

    def check(self) -> Sequence[str]:
        """Return what is wrong with packages and files that the options ask for, each with what to do.

        Called before anything else is read. Files are best read here, once.
        """
        return ()

    def first_effect(self) -> str:
        """Identify what the adapter changes before the first step; empty if that is nothing.

        Images of step 0 are drawn again when it changes.
        """
        return ""

    def check_model(self, empty: Callable[[], nn.Module], family: ModelFamily) -> None:
        """Check that the options fit the model, before anything is encoded; for adapters that override :meth:`adapt`.

        Args:
            empty: Builds the denoiser without its weights, on the meta device.

        Raises:
            ConfigError: As :meth:`adapt`.
        """

    def adapt(self, denoiser: nn.Module, family: ModelFamily, dtype: torch.dtype) -> Mapping[str, str]:
        """Choose the modules to adapt, and :meth:`attach`; by default the family's targets.

        For adapters whose own options choose modules. The denoiser may be on the meta device, to count or to check.

        Returns:
            By full name of each adapted module what it was chosen by, for messages, such as the class of modules that
            it is in; empty texts if there is nothing to tell.

        Raises:
            ConfigError: If the options choose modules that the model does not have.
        """
        targets = family.adapter_targets(denoiser)
        self.attach(denoiser, targets, dtype)
        return dict.fromkeys(targets, "")

    def begin(self, denoiser: nn.Module, targets: Sequence[str]) -> Iterator[str]:
        """Compute what the adapter begins with, if that takes more than a moment; yield each module's name after it.

        Called after :meth:`adapt`, but not where :meth:`load_state` follows at once with the weights of a checkpoint.

        Args:
            targets: Full names of the adapted modules, all that :meth:`adapt` returned.
        """
        yield from ()

    @abstractmethod
    def attach(self, denoiser: nn.Module, targets: Sequence[str], dtype: torch.dtype) -> None:
        """Add trainable weights of ``dtype`` to every target module; everything else stays frozen.

        Raises:
            ConfigError: If a target names no module.
        """

    def at_strength(self, denoiser: nn.Module, strength: float) -> AbstractContextManager[None]:
        """Inside this context the adapter acts with a factor: for ``is_regularisation_data`` and sliders.

        An adapter that does not override it refuses such sets. Gradients that trained weights have must stay.

        Args:
            strength: 1 is as usual, and with 0 the model must predict exactly as without the adapter.
        """
        raise PluginError(f"adapters of lora_type {self.name!r} have no strength that can be changed for a while")

    @abstractmethod
    def state(self, denoiser: nn.Module) -> dict[str, Tensor]:
        """Return the raw trainable weights by name, as a checkpoint keeps them for resuming."""

    @abstractmethod
    def load_state(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Restore the weights that :meth:`state` returned.

        Raises:
            CheckpointError: If names or shapes do not fit.
        """

    @abstractmethod
    def write(self, weights: Mapping[str, Tensor], folder: Path, prefix: str) -> None:
        """Write the files that other programs load into an existing folder. Called in the main process only.

        Args:
            weights: Named as in :meth:`state`; each unsharded and on the CPU, even if the model is sharded.
            prefix: Prefix of the tensor names in the file, the family's
                :attr:`~difftrain.contracts.ModelFamily.lora_prefix`.

        Raises:
            OSError: If it cannot be written.
        """

    def write_config(self, denoiser: nn.Module, folder: Path, prefix: str) -> None:
        """Write beside the files of :meth:`write` what other programs must know of the model; by default nothing.

        Raises:
            OSError: If it cannot be written.
        """

    @classmethod
    def options_to_use(cls, path: Path, prefix: str, *, alone: bool) -> Mapping[str, object] | None:
        """Return the run options with which a written file is used, and not trained on: for `difftrain edit`.

        With them, :meth:`load_state` of what :meth:`read` gives acts as the file does in other programs. An adapter
        that does not override it keeps the options of its run. Must not import torch.

        Args:
            path: As in :meth:`read`.
            alone: No run says which modules were adapted, so the options must choose them too.

        Returns:
            Values by option; none for an option that keeps its default. None if the file is of another kind.

        Raises:
            CheckpointError: If the file cannot be used by itself.
        """
        return None if alone else {}

    @abstractmethod
    def read(self, path: Path, prefix: str) -> dict[str, Tensor]:
        """Return the weights that :meth:`write` wrote, named as in :meth:`state`.

        They have the same effect as the weights that were written; their values may differ where the file stores them
        in another way, for example with the strength folded in.

        Args:
            path: The folder, or the file in it.

        Raises:
            CheckpointError: If it does not hold such an adapter or is damaged.
            OSError: If it cannot be read.
        """


class OptimizerFactory(Options, ABC):
    """Builds an optimizer: ``optimizer: NAME``; fields are the keys of ``optimizer_config``."""

    name: ClassVar[str]
    parameter_dtype: ClassVar[str] = "float32"
    """dtype of the trained weights under ``mixed_precision: bf16``; with ``no`` they are float32."""
    usual_learning_rates: ClassVar[tuple[float, float] | None] = None
    """Lowest and highest usual rate for adapters; the user is warned about a rate outside it."""

    @abstractmethod
    def build(self, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float) -> torch.optim.Optimizer:
        """Return the optimizer, ready for its first step; it may define its own groups with their own rates.

        In each step the core sets every group's ``lr`` to its initial value times the schedule's factor.

        Args:
            parameters: The trained weights with their names in the model.
        """

    def evaluating(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Inside this context the trained weights are those to validate, save and export.

        For optimizers whose final weights are not the ones they train, such as schedule-free ones or averages. On exit
        the optimizer must be ready to train on; the core itself restores the weights bit for bit.

        Args:
            optimizer: The result of :meth:`build`.
        """
        return nullcontext()

    def rate(self, optimizer: torch.optim.Optimizer) -> float | None:
        """Return the learning rate to report for the coming step; None reports the first group's.

        For optimizers that choose their own rate.

        Args:
            optimizer: The result of :meth:`build`.
        """
        return None


class Schedule(Options, ABC):
    """Learning-rate schedule: ``lr_scheduler: NAME``. Pure. Fields are run options."""

    name: ClassVar[str]

    @abstractmethod
    def factor(self, step: int, warmup_steps: int, total_steps: int) -> float:
        """Return the factor on the learning rate in the step that follows ``step`` steps."""


class TimestepSampler(Options, ABC):
    """Draws noise levels, before the shift. Fields are run options."""

    name: ClassVar[str]

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return [count] noise levels on the CPU, float32, in (0, 1); 0 is clean."""


class Loss(Options, ABC):
    """Compares the prediction with its target. Fields are run options."""

    name: ClassVar[str]
    dataset_options: ClassVar[type[Options] | None] = None
    """Its fields become keys of target sets, and their values reach :meth:`extras`; None adds no keys."""
    replayable: ClassVar[bool] = False
    """Whether :meth:`compute` does the same operations for all inputs of one shape, looks at no value on the CPU and
    draws only from torch's generator of the GPU: a training step can then be recorded once and replayed."""

    def extras(self, sample: Sample, options: Options) -> Mapping[str, Tensor]:
        """Return what :meth:`compute` needs for one sample in addition to its latents, by name: a weight, a mask.

        The core stacks them into :attr:`Batch.extras`. Called each time a sample is read, from several threads;
        equal samples and options must give equal tensors, so that a resumed run repeats them.

        Args:
            options: The sample's dataset entry as :attr:`dataset_options`.

        Returns:
            Tensors without a batch dimension, of one shape for all samples of a bucket. Integers and booleans keep
            their number format, everything else becomes float32. The family must not use the same names.
        """
        return {}

    @abstractmethod
    def compute(self, prediction: Tensor, noisy: NoisyBatch, batch: Batch) -> Tensor:
        """Return the loss of each sample, [B], float32.

        Args:
            prediction: The model's prediction, in the shape of the latents.
            batch: On the device of the prediction, with the result of :meth:`extras`.
        """
