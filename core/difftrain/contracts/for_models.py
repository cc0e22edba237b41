"""Contracts of a model: its encoders, its checkpoints (flavours), its architecture (family)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self

from typing_extensions import TypeVar

from difftrain.config.known_keys import KnownKeys
from difftrain.config.options import Options
from difftrain.contracts.noise_process import FlowMatching, NoiseProcess
from difftrain.errors import ModelError
from difftrain.types import (
    AttentionShape,
    Batch,
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


Input = TypeVar("Input", default=Any)
"""What a family's ``build_input()`` makes, its flavours extend and its ``predict()`` takes; opaque to the core."""


class _OfInput(Options, Generic[Input]):
    """Options that are typed by a family's input. ``ModelFamily["MyInput"]`` is for type checkers: it is the class
    itself, so that the input's class, and torch with it, need not be imported where a family is defined."""

    def __class_getitem__(cls, _input: object) -> type[Self]:
        return cls


class TextEncoder(ABC):
    """A family's text encoders, loaded."""

    max_tokens: int | None = None
    """Tokens of a caption that are read; None where there is no such number."""

    def cut_captions(self, captions: Sequence[str]) -> list[str]:
        """Those of the captions that are longer than what is read, so that the user is told; by default none."""
        return []

    @abstractmethod
    def encode(
        self, captions: Sequence[str], references: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[TextEmbeds]:
        """Embeddings of each caption, without a batch dimension, on the CPU.

        Args:
            captions: Any texts, the empty one included.
            references: The reference images of each caption, in the size of :meth:`ModelFamily.text_view`, for families
                whose text depends on pixels (:attr:`ModelFamily.text_sees_references`). All captions of one call have
                as many, and at least one each; None for captions without references, and for all other families.
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


class ModelFlavour(_OfInput[Input], ABC):
    """One checkpoint of a family and what it can do: ``model_flavour: NAME``. Fields are run options.

    ``ModelFlavour["MyInput"]`` names what :meth:`extend_input` takes: the input of its family, or a protocol with what
    the flavour needs of it.

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
    references_fit_target: ClassVar[bool] = False
    """True when a reference must be encoded at its target's size, as where channels of both are joined: a pair that is
    sized otherwise is then an error before anything is encoded."""
    pipeline_references: ClassVar[int | None] = None
    """How many references the stock pipeline takes, for validation images; None takes all."""
    default_guidance: ClassVar[float] = 3.5
    """Guidance of validation images when the config gives none."""
    default_guidance_real: ClassVar[float] = 1.0
    """True classifier-free guidance of validation images when the config gives none; 1 is off."""
    preferred_sizes: ClassVar[tuple[Size, ...]] = ()
    """Sizes that the pipeline puts references on; empty when any size will do."""
    max_pixels: ClassVar[int | None] = None
    """Area of the largest image the model can take, in pixels; None is no limit."""
    weights: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """What tells this checkpoint's weights from those of other flavours: for each of some facts the values that
    :attr:`ModelLocation.facts` may have, such as {"pipeline": ("EditPipeline",)}. Weights of another flavour, also by
    its :attr:`hub_id`, are an error unless the user allows them."""
    settings: ClassVar[Mapping[str, object]] = {}
    """Facts that only the family reads, such as the number of text tokens."""

    def extend_input(self, family: ModelFamily, model_input: Input, batch: Batch) -> Input:
        """Adds the references of a batch to the model's input; the core calls it only when there are some."""
        raise ModelError(f"flavour {self.name!r} of {self.family!r} takes no reference images")

    def pipeline_class(self) -> type:
        """The stock inference pipeline that validation images go through."""
        raise ModelError(f"flavour {self.name!r} of {self.family!r} names no pipeline")

    def pipeline_arguments(self, request: ValidationRequest) -> dict[str, object]:
        """Arguments of the pipeline's call beyond those of the family, for instance the reference image."""
        return {}


class ModelFamily(_OfInput[Input], ABC):
    """An architecture: how its parts are loaded and what its forward takes. Fields are run options.

    ``ModelFamily["MyInput"]`` names what :meth:`build_input` makes and :meth:`predict` takes.

    Shapes below are those of image models, [B, C, h, w]. The core only stacks latents along B and takes means, so a
    family may use any rank and channel count; packing into tokens is its own affair.

    The object holds options only; loaded modules are passed in. The methods are in the order of a run.
    """

    name: ClassVar[str]
    pixel_multiple: ClassVar[int]
    """Edges of encoded images are multiples of this, in pixels."""
    text_sees_references: ClassVar[bool] = False
    """True when the text embeddings depend on the reference's pixels; they are then part of its cache key.
    The text encoder is handed them as :meth:`text_view` says."""
    default_flavour: ClassVar[str | None] = None
    """What is trained when a run names no flavour, which is said; None asks for a name where there are several."""
    dataset_options: ClassVar[type[Options] | None] = None
    """Its fields become keys of target sets, and their values reach :meth:`extras`; None asks nothing of a sample."""
    known_keys: ClassVar[KnownKeys] = KnownKeys()
    """Keys of the run file that users of this architecture carry from other programs, and no option has."""
    usual_timestep_sampler: ClassVar[str] = "sigmoid"
    """Distribution of noise levels when the config names none."""
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

    def latents_bytes(self, location: ModelLocation, size: Size, value_bytes: int) -> int:
        """Bytes of what the image encoder will give for one image, mean and standard deviation together.

        For the estimate of disk that is compared with what is free before any weight is loaded.

        Args:
            size: Of the image that is encoded.
            value_bytes: Of one number in the encoder's dtype.

        Returns:
            0 where the family cannot say; nothing is compared then.
        """
        return 0

    def text_bytes(
        self, location: ModelLocation, flavour: ModelFlavour, value_bytes: int, views: Sequence[Size] = ()
    ) -> int:
        """Bytes of the embeddings of one caption, the longest if they differ; 0 where the family cannot say.

        Args:
            value_bytes: Of one number in the encoder's dtype.
            views: Sizes in which the text encoder sees the references, with :attr:`text_sees_references`.
        """
        return 0

    def text_view(self, size: Size, flavour: ModelFlavour) -> Size:
        """The size in which the text encoder is handed a reference; used with :attr:`text_sees_references`.

        It shows the same part of the reference as the encoded image, resized once from the source image. Whatever
        changes the answer for one size is found by the cache key; no other identity is needed for it.

        Args:
            size: Of the encoded reference.
        """
        return size

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
    def empty_denoiser(self, location: ModelLocation) -> nn.Module:
        """The module that is trained, without its weights: parameters on the meta device, buffers with their values.

        Build it under accelerate's ``init_empty_weights()``. The core fills it from :meth:`denoiser_weights`.
        """

    @abstractmethod
    def denoiser_weights(self, location: ModelLocation) -> Iterator[tuple[str, Tensor]]:
        """Every weight with its name in the module's ``state_dict()``, read as it is asked for.

        :func:`difftrain.read_weights` does this for a folder of safetensors files. The core copies each tensor to the
        device before it asks for the next, so the host never holds the whole model. Weights that are tied may come
        under one of their names.

        Raises:
            ModelError: If the files cannot be read.
        """

    def keep_in_float32(self) -> tuple[str, ...]:
        """Name patterns (fnmatch) of modules or weights that stay in float32 when all others take the run's format."""
        return ()

    @abstractmethod
    def adapter_targets(self, denoiser: nn.Module) -> list[str]:
        """Full names of the linear modules that an adapter wraps, by the family's target option.

        The denoiser is loaded by then, and its linear modules may be quantised.
        """

    def fixed(self) -> dict[str, object]:
        """Options, by name, that a resumed run must keep, since they say which modules have trained weights."""
        return {}

    def blocks(self, denoiser: nn.Module) -> list[nn.Module]:
        """The repeated blocks that hold most of the weights, in the order of the forward.

        By default the modules whose class the denoiser names in ``_repeated_blocks``, as diffusers' models do.
        """
        names = getattr(denoiser, "_repeated_blocks", None) or ()
        return [part for part in denoiser.modules() if type(part).__name__ in names]

    def enable_checkpointing(self, denoiser: nn.Module) -> None:
        """Recompute activations in the backward pass instead of keeping them, block by block.

        By default through ``enable_gradient_checkpointing()`` where the denoiser has it, as diffusers' models do, else
        around each of :meth:`blocks`.

        Raises:
            ModelError: If there are no blocks.
        """
        enable = getattr(denoiser, "enable_gradient_checkpointing", None)
        if enable is not None:
            enable()
            return
        blocks = self.blocks(denoiser)
        if not blocks:
            raise ModelError(
                f"gradient_checkpointing: model family {self.name!r} names no blocks that could be recomputed\n"
                'hint: set "gradient_checkpointing": false'
            )
        for block in blocks:
            _recompute(block)

    def keep_unquantized(self) -> tuple[str, ...]:
        """Name patterns (fnmatch) of modules that stay in full precision under any quantizer."""
        return ()

    # one step
    def noise_process(self, location: ModelLocation) -> NoiseProcess:
        """How latents become noisy and what is predicted then; made once, before the first step.

        Args:
            location: For processes whose noise levels a file of the model lists.
        """
        return FlowMatching()

    def sigma_shift(self, latents: Tensor) -> float:
        """Factor s of ``s*sigma / (1 + (s - 1)*sigma)`` for target latents of this shape; 1 is no shift."""
        return 1.0

    def batch_key(self, sample: Sample) -> Hashable:
        """Samples share a batch only if this is equal, beside the sizes of target and references."""
        return ()

    def extras(self, sample: Sample, options: Options) -> Mapping[str, Tensor]:
        """What the model's input needs of one sample beside latents and text; see :meth:`Loss.extras`."""
        return {}

    def tokens(self, batch: Batch) -> Mapping[str, int]:
        """Sequence length of one sample by group (target, references, text): for speed and estimates."""
        return {"target": batch.latents[0, 0].numel()}

    def attention_shapes(self, batch: Batch, denoiser: nn.Module) -> Sequence[AttentionShape]:
        """The attention calls of one forward over a batch, each shape once; empty where the family cannot say.

        For choosing kernels before the first step. :func:`difftrain.testing.check_family` compares it with a forward.
        """
        return ()

    @abstractmethod
    def collate_text(self, texts: Sequence[TextEmbeds]) -> TextEmbeds:
        """One batch of several samples' embeddings."""

    @abstractmethod
    def build_input(self, noisy: NoisyBatch, batch: Batch, denoiser: nn.Module) -> Input:
        """What :meth:`predict` takes, of the target and the text alone; the flavour adds references.

        Args:
            denoiser: The module that :meth:`empty_denoiser` made, out of any wrapper: for what its config says.
        """

    @abstractmethod
    def predict(self, denoiser: nn.Module, model_input: Input) -> Tensor:
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


def _recompute(block: nn.Module) -> None:
    """Let a block's forward keep nothing but its inputs for the backward pass."""
    import torch
    from torch.utils.checkpoint import checkpoint

    forward = block.forward

    def recomputed(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    block.forward = recomputed
