"""What plugins implement.

This module is what a third-party author reads first; start with :class:`ConditioningGenerator`. Nothing
here imports a plugin, a model library or the training loop, and importing it does not import torch: an
entry-point module stays light and does its heavy imports inside the methods.

Every contract is an :class:`Options` class: its fields are what users may set, with help and validation,
and its ``name`` is how a config names it.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from difftrain.config.options import Options
from difftrain.errors import ModelError
from difftrain.types import (
    Batch,
    Geometry,
    GeometryRules,
    ImageRecord,
    ModelInput,
    ModelLocation,
    NoisyBatch,
    Sample,
    Sampler,
    Size,
    TextEmbeds,
    ValidationRequest,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn


# --- data ------------------------------------------------------------------------------------------------


class ConditioningGenerator(Options, ABC):
    """Makes a conditioning image from a target image: ``conditioning: [{"type": NAME, ...fields}]``."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    """Raise it when pixels change for equal options: made pictures are then made again."""

    @abstractmethod
    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """The conditioning image of one target.

        Args:
            image: The target, RGB, upright, in its own size.
            rng: Seeded from content, options, version and seed; the only source of randomness allowed.

        Returns:
            An RGB image of the same size.
        """


class Pairing(Options, ABC):
    """How a reference follows its edit image: ``conditioning_type: NAME`` on a reference set.

    Fields become dataset keys.
    """

    name: ClassVar[str]

    @abstractmethod
    def place(
        self, *, target: ImageRecord, target_geometry: Geometry, reference: ImageRecord, own_rules: GeometryRules
    ) -> Geometry:
        """The geometry to encode the reference with.

        Args:
            target: The edit image.
            target_geometry: Its geometry, as assigned from its dataset's rules.
            reference: The reference image.
            own_rules: The rules of the reference's dataset entry.

        Raises:
            PairingError: If the two cannot be a pair, for instance when their aspects differ too much.
        """


class DataSource(Options, ABC):
    """Where a dataset's images come from: ``type: NAME``. Fields become dataset keys."""

    name: ClassVar[str]

    @abstractmethod
    def list_images(self) -> Iterable[tuple[str, Path]]:
        """(path below the root as posix text, file) of every image, sorted by the first.

        Raises:
            DataError: If the source does not exist or cannot be read.
        """


class CaptionSource(Options, ABC):
    """Where an image's captions come from: ``caption_strategy: NAME``. Fields become dataset keys."""

    name: ClassVar[str]

    @abstractmethod
    def files(self, image: Path) -> tuple[Path, ...]:
        """Files whose change must change the captions, whether they exist or not; may be empty."""

    @abstractmethod
    def captions(self, image: Path, key: str) -> tuple[str, ...] | None:
        """The captions of one image, or None when it has none.

        Raises:
            DataError: If a caption file cannot be read.
        """


# --- model -----------------------------------------------------------------------------------------------


class TextEncoder(ABC):
    """A family's text encoders, loaded."""

    @abstractmethod
    def encode(
        self, captions: Sequence[str], references: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[TextEmbeds]:
        """Embeddings of each caption, without a batch dimension, on the CPU.

        Args:
            captions: Any texts, the empty one included.
            references: The reference pictures of each caption, for families whose text depends on pixels
                (:attr:`ModelFamily.text_sees_references`); None otherwise.
        """


class ImageEncoder(ABC):
    """A family's VAE, loaded."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the *normalised* latents.

        The family's normalisation is affine, so that ``mean + std * N(0, 1)`` is a normalised sample.

        Args:
            pixels: [B, 3, H, W], -1 to 1, float32.

        Returns:
            Two tensors [B, C, h, w], finite, on the CPU.
        """

    @abstractmethod
    def move(self, device: torch.device) -> None:
        """Move the weights, to free memory while they are not needed."""


class ModelFlavour(Options, ABC):
    """One checkpoint of a family and what it can do: ``model_flavour: NAME``. Fields are run options.

    A flavour that takes reference images overrides :meth:`extend_input`, :meth:`pipeline_class` and
    :meth:`pipeline_arguments`. It need not import its family: it is handed the family object.
    """

    family: ClassVar[str]
    name: ClassVar[str]
    hub_id: ClassVar[str]
    licence_url: ClassVar[str | None] = None
    """Where a user accepts the licence of gated weights."""
    distilled_from: ClassVar[str | None] = None
    """Set for a step-distilled model (training it collapses): the base model to train instead."""
    max_references: ClassVar[int] = 0
    default_guidance: ClassVar[float] = 3.5
    """Guidance of validation pictures when the config gives none."""
    preferred_sizes: ClassVar[tuple[Size, ...]] = ()
    """Sizes that the pipeline puts references on; empty when any size will do."""
    max_pixels: ClassVar[int | None] = None
    """Area of the largest picture the model can take, in pixels; None is no limit."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """Facts that only the family reads, such as the number of text tokens."""

    def extend_input(self, family: ModelFamily, model_input: ModelInput, batch: Batch) -> ModelInput:
        """Adds the references of a batch to the model's input; the core calls it only when there are some."""
        raise ModelError(f"flavour {self.name!r} of {self.family!r} takes no reference images")

    def pipeline_class(self) -> type:
        """The stock inference pipeline that validation pictures go through."""
        raise ModelError(f"flavour {self.name!r} of {self.family!r} names no pipeline")

    def pipeline_arguments(self, request: ValidationRequest) -> dict[str, Any]:
        """Arguments of the pipeline's call beyond those of the family, for instance the reference image."""
        return {}


class ModelFamily(Options, ABC):
    """An architecture: how its parts are loaded and what its forward takes. Fields are run options.

    The object holds options only; loaded modules are passed in. The methods are in the order of a run.
    """

    name: ClassVar[str]
    pixel_multiple: ClassVar[int]
    """Edges of encoded pictures are multiples of this, in pixels."""
    text_sees_references: ClassVar[bool] = False
    """True when the text embeddings depend on the reference's pixels; they are then part of its cache key.
    The text encoder is handed the pictures that the VAE sees, and makes its own view of them."""
    lora_prefix: ClassVar[str] = "transformer"
    """What adapter keys start with in files that other programs load."""

    # before any weight; must not import torch
    @abstractmethod
    def locate(self, model: str | None, flavour: ModelFlavour) -> ModelLocation:
        """Find the model's files: a hub id, a local folder, a built-in name; None takes the flavour's hub id.

        Raises:
            ModelError: If it cannot be found or reached, or its licence is not accepted, with what to do.
        """

    @abstractmethod
    def text_identity(self, location: ModelLocation, flavour: ModelFlavour) -> str:
        """Whatever changes text embeddings: weights, token counts. Part of the cache key."""

    @abstractmethod
    def image_identity(self, location: ModelLocation) -> str:
        """Whatever changes latents: the VAE's weights. Part of the cache key."""

    # loading, in this order; each part is let go before the next
    @abstractmethod
    def load_text_encoder(
        self, location: ModelLocation, flavour: ModelFlavour, device: torch.device, dtype: torch.dtype
    ) -> TextEncoder: ...

    @abstractmethod
    def load_image_encoder(
        self, location: ModelLocation, device: torch.device, dtype: torch.dtype, *, tiling: bool, slicing: bool
    ) -> ImageEncoder: ...

    @abstractmethod
    def load_denoiser(self, location: ModelLocation, dtype: torch.dtype) -> nn.Module:
        """The module that is trained, on the CPU, frozen, in evaluation mode of its dropouts."""

    @abstractmethod
    def adapter_targets(self, denoiser: nn.Module) -> list[str]:
        """Full names of the linear modules that an adapter wraps, by the family's target option."""

    def enable_checkpointing(self, denoiser: nn.Module) -> None:
        """Recompute activations in the backward pass instead of keeping them, block by block."""
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]  # what diffusers' models have

    def keep_unquantized(self) -> tuple[str, ...]:
        """Name patterns (fnmatch) of modules that stay in full precision under any quantizer."""
        return ()

    # one step
    @abstractmethod
    def sigma_shift(self, latents: Tensor) -> float:
        """Factor s of ``s*sigma / (1 + (s - 1)*sigma)`` for target latents of this shape; 1 is no shift."""

    def batch_key(self, sample: Sample) -> Hashable:
        """Samples share a batch only if this is equal, beside the sizes of target and references."""
        return ()

    def tokens(self, batch: Batch) -> Mapping[str, int]:
        """Sequence length of one sample by group (target, references, text): for speed and estimates."""
        return {"target": batch.latents[0, 0].numel()}

    @abstractmethod
    def collate_text(self, texts: Sequence[TextEmbeds]) -> TextEmbeds:
        """One batch of several samples' embeddings."""

    @abstractmethod
    def build_input(self, noisy: NoisyBatch, batch: Batch, denoiser: nn.Module) -> ModelInput:
        """What :meth:`predict` takes, of the target and the text alone; the flavour adds references."""

    @abstractmethod
    def predict(self, denoiser: nn.Module, model_input: ModelInput) -> Tensor:
        """The prediction for the target only, [B, C, h, w]."""

    # validation
    @abstractmethod
    def make_sampler(
        self,
        location: ModelLocation,
        flavour: ModelFlavour,
        denoiser: nn.Module,
        image_encoder: ImageEncoder,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Sampler:
        """A sampler over the model in training: stock inference, nothing of the training forward."""


# --- training --------------------------------------------------------------------------------------------


class Adapter(Options, ABC):
    """Trainable weights beside a frozen model: ``lora_type: NAME``. Fields are run options."""

    name: ClassVar[str]

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
    def export(self, denoiser: nn.Module, prefix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and header metadata of the file that other programs load."""


class OptimizerFactory(Options, ABC):
    """Builds an optimizer: ``optimizer: NAME``; fields are the keys of ``optimizer_config``."""

    name: ClassVar[str]
    parameter_dtype: ClassVar[str] = "float32"
    """dtype of the trained weights under ``mixed_precision: bf16``; with ``no`` they are float32."""
    usual_learning_rates: ClassVar[tuple[float, float] | None] = None
    """Lowest and highest rate that is usual for adapters; outside it the user is warned."""

    @abstractmethod
    def build(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer: ...


class Schedule(Options, ABC):
    """Learning-rate schedule: ``lr_scheduler: NAME``. Pure."""

    name: ClassVar[str]

    @abstractmethod
    def factor(self, step: int, warmup_steps: int, total_steps: int) -> float:
        """What the learning rate is multiplied with in the step that has ``step`` steps before it."""


class Quantizer(Options, ABC):
    """Stores the frozen weights in fewer bits: ``base_model_precision: NAME``."""

    name: ClassVar[str]

    @abstractmethod
    def check(self) -> str | None:
        """None when the needed packages and hardware are there, else what is missing and how to get it."""

    @abstractmethod
    def quantize(self, module: nn.Module, device: torch.device, keep: Callable[[str], bool]) -> None:
        """Quantise the linear weights in place, except modules for whose name ``keep`` is true; all frozen."""


class TimestepSampler(Options, ABC):
    """Draws noise levels, before the shift. Fields are run options."""

    name: ClassVar[str]

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] noise levels on the CPU, float32, in (0, 1); 0 is clean."""


class Loss(Options, ABC):
    """Compares prediction and velocity. Fields are run options."""

    name: ClassVar[str]

    @abstractmethod
    def compute(self, prediction: Tensor, noisy: NoisyBatch) -> Tensor:
        """Loss of each sample, [B], float32."""
