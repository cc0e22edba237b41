"""Contracts of a model: its checkpoints (flavours) and its architecture (family)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from difftrain.config.known_keys import KnownKeys
from difftrain.config.options import Options
from difftrain.contracts.encoders import ImageEncoder, TextEncoder
from difftrain.contracts.model_input import Input, TypedByInput
from difftrain.contracts.noise_process import FlowMatching, NoiseProcess
from difftrain.contracts.original_layers import OriginalLayers
from difftrain.contracts.recomputing import recompute_blocks
from difftrain.errors import ModelError
from difftrain.types import (
    AttentionShape,
    Batch,
    ModelLocation,
    ModelOutline,
    NoisyBatch,
    Sample,
    Sampler,
    Size,
    TextEmbeds,
    ValidationRequest,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn


class ModelFlavour(TypedByInput[Input], ABC):
    """One checkpoint of a family and what it can do: ``model_flavour: NAME``. Fields are run options.

    In ``ModelFlavour["MyInput"]``, the input is the family's, or a protocol with the parts that :meth:`extend_input`
    needs.

    A flavour with reference images overrides :meth:`extend_input`, :meth:`pipeline_class` and
    :meth:`pipeline_arguments`. It need not import its family: the core passes the family object.
    """

    family: ClassVar[str]
    name: ClassVar[str]
    hub_id: ClassVar[str]
    licence_url: ClassVar[str | None] = None
    """Where users accept the licence of gated weights."""
    distilled_from: ClassVar[str | None] = None
    """For a step-distilled model, which collapses in training: the base model to train instead."""
    max_references: ClassVar[int] = 0
    needs_reference: ClassVar[bool] = False
    """True if every training image must have a reference: images without one are then an error. Dropout of references
    is not affected."""
    references_fit_target: ClassVar[bool] = False
    """True if a reference must be encoded at its target's size, for instance to join their channels. Pairs of different
    sizes are then an error before anything is encoded."""
    pipeline_references: ClassVar[int | None] = None
    """How many references the stock pipeline takes for a validation image; None takes all."""
    default_guidance: ClassVar[float] = 3.5
    """Guidance of validation images if the config sets none."""
    default_guidance_real: ClassVar[float] = 1.0
    """True classifier-free guidance of validation images if the config sets none; 1 is off."""
    preferred_sizes: ClassVar[tuple[Size, ...]] = ()
    """Sizes that the pipeline resizes references to; empty if it takes any size."""
    max_pixels: ClassVar[int | None] = None
    """Area of the largest image that the model can take, in pixels; None is no limit."""
    weights: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """How to tell this checkpoint's weights from other flavours': the values that :attr:`ModelLocation.facts` may have,
    by name, such as {"pipeline": ("EditPipeline",)}. Weights of another flavour, recognised by these or by its
    :attr:`hub_id`, are an error unless the user allows them."""
    settings: ClassVar[Mapping[str, object]] = {}
    """Settings that only the family reads, such as the number of text tokens."""

    def extend_input(self, family: ModelFamily, model_input: Input, batch: Batch) -> Input:
        """Add a batch's references to the model's input; called only for batches that have some."""
        raise ModelError(f"flavour {self.name!r} of {self.family!r} takes no reference images")

    def pipeline_class(self) -> type:
        """The stock inference pipeline that draws validation images."""
        raise ModelError(f"flavour {self.name!r} of {self.family!r} names no pipeline")

    def pipeline_arguments(self, request: ValidationRequest) -> dict[str, object]:
        """Arguments of the pipeline's call beside the family's, for instance the reference image."""
        return {}


class ModelFamily(TypedByInput[Input], ABC):
    """An architecture: how its parts are loaded and what its forward takes. Fields are run options.

    In ``ModelFamily["MyInput"]``, the input is what :meth:`build_input` makes and :meth:`predict` takes.

    Shapes below are those of image models, [B, C, h, w]. The core only stacks latents along B and takes means, so a
    family may use any rank and channel count, and packs tokens itself.

    The object holds options only; loaded modules are passed in. Methods are in the order of a run.
    """

    name: ClassVar[str]
    pixel_multiple: ClassVar[int]
    """Edges of encoded images are multiples of this, in pixels."""
    adapter_options: ClassVar[frozenset[str]] = frozenset()
    """Fields that only choose the modules of an adapter: without one they are noted as having no effect."""
    text_sees_references: ClassVar[bool] = False
    """True if text embeddings depend on the references' pixels, which are then part of their cache key. The text
    encoder gets the references in the size of :meth:`text_view`."""
    default_flavour: ClassVar[str | None] = None
    """The flavour of runs that name none, and the run says so; with None, users must choose one of several."""
    text_encoders: ClassVar[int] = 0
    """How many models :meth:`TextEncoder.models` gives, at most 4: those that ``text_encoder_1_precision``, ... are
    for."""
    dataset_options: ClassVar[type[Options] | None] = None
    """Its fields become dataset keys of target sets, and their values reach :meth:`extras`; None adds no keys."""
    known_keys: ClassVar[KnownKeys] = KnownKeys()
    """Keys that users of this architecture know from other programs, and that no option here has."""
    usual_timestep_sampler: ClassVar[str] = "sigmoid"
    """Distribution of noise levels if the config names none."""
    replayable: ClassVar[bool] = False
    """Whether :meth:`predict` does the same operations for all inputs of one shape, looks at no value on the CPU and
    draws only from torch's generator of the GPU: a training step can then be recorded once and replayed."""
    lycoris_classes: ClassVar[tuple[str, ...]] = ()
    """Classes of modules whose linear layers ``lora_type: lycoris`` adapts if the config chooses none; empty adapts
    :meth:`adapter_targets`."""
    old_class_names: ClassVar[Mapping[str, str]] = {}
    """Names that classes of the denoiser's modules had in earlier versions of their library, and still have in users'
    adapter configs, with those of today."""
    lora_prefix: ClassVar[str] = "transformer"
    """Prefix of adapter keys in files that other programs load."""
    original_layers: ClassVar[OriginalLayers | None] = None
    """Names of layers in the original checkpoint, for adapter files of programs that use them; None if the modules'
    own names are the original ones."""

    # before any weight; must not import torch
    @abstractmethod
    def locate(self, model: str | None, flavour: ModelFlavour) -> ModelLocation:
        """Find the model's files by hub id, local folder or built-in name; None takes the flavour's hub id.

        Raises:
            ModelError: If it cannot be found or reached, or its licence is not accepted, with what to do.
        """

    def locate_with_denoiser(self, model: str | None, denoiser: str, flavour: ModelFlavour) -> ModelLocation:
        """Find the denoiser in another place than the other parts: ``pretrained_transformer_model_name_or_path``.

        A family that overrides this gives a location with :attr:`ModelLocation.denoiser`, from which
        :meth:`empty_denoiser` and :meth:`denoiser_weights` then load. :func:`difftrain.open_weight_file` opens
        checkpoints in one file. Families that do not override it refuse the option.

        Args:
            model: As in :meth:`locate`, for the other parts; its denoiser's weights need not exist.
            denoiser: A hub id, a local folder or a safetensors file.

        Raises:
            ModelError: As :meth:`locate`; and if the denoiser is another model, or does not fit the other parts.
        """
        raise ModelError(f"family {self.name!r} takes no denoiser from another place than the other parts")

    def identify_file(self, path: Path) -> ModelLocation | None:
        """Say what a checkpoint of the denoiser in one file is, from its header, for `difftrain identify`.

        Returns:
            A location with its facts and origins; None if the family does not read such files.

        Raises:
            ModelError: If it is something else, or cannot be trained; says what it is.
        """
        return None

    def identify_folder(self, path: Path) -> ModelLocation | None:
        """Say what a folder with the denoiser alone is, of any number of files, from its config.

        Returns:
            As :meth:`identify_file`.

        Raises:
            ModelError: As :meth:`identify_file`; and if files are missing.
        """
        return None

    @abstractmethod
    def text_identity(self, location: ModelLocation, flavour: ModelFlavour) -> str:
        """Identifies all that text embeddings depend on: weights, token counts. Part of the cache key."""

    @abstractmethod
    def image_identity(self, location: ModelLocation) -> str:
        """Identifies all that latents depend on: the VAE's weights. Part of the cache key."""

    def latents_bytes(self, location: ModelLocation, size: Size, value_bytes: int) -> int:
        """Bytes of one image's latents, mean and standard deviation together.

        The start-up estimates the size of the caches with it, and compares that with the free disk.

        Args:
            size: Size of the encoded image.
            value_bytes: Bytes of one number in the encoder's dtype.

        Returns:
            0 if the family cannot say; the disk is then not checked.
        """
        return 0

    def text_bytes(
        self, location: ModelLocation, flavour: ModelFlavour, value_bytes: int, views: Sequence[Size] = ()
    ) -> int:
        """Bytes of one caption's embeddings, of the longest if they differ; 0 if the family cannot say.

        Args:
            value_bytes: Bytes of one number in the encoder's dtype.
            views: Sizes in which the text encoder sees the references, with :attr:`text_sees_references`.
        """
        return 0

    def long_captions(
        self, location: ModelLocation, flavour: ModelFlavour, captions: Sequence[str]
    ) -> Sequence[str] | None:
        """The captions that the text encoder does not read to the end, for `difftrain check`; loads no weights.

        Returns:
            None if the family cannot say, for instance because the tokenizer is not on this machine; by default always.
        """
        return None

    def text_view(self, size: Size, flavour: ModelFlavour) -> Size:
        """The size in which the text encoder gets a reference; used with :attr:`text_sees_references`.

        The view shows the same part of the reference as the encoded image, resized once from the source image. The
        cache key covers the view, so :meth:`text_identity` need not.

        Args:
            size: Size of the encoded reference.
        """
        return size

    def outline(self, model: str | None, flavour: ModelFlavour) -> ModelOutline | None:
        """Describe the model by its shapes, for `difftrain plan`; None if the family cannot.

        Looks only at what is on this machine, and writes nothing. A model that is not here has the published shapes.

        Args:
            model: ``pretrained_model_name_or_path``.
        """
        return None

    def outline_with_denoiser(self, model: str | None, denoiser: str, flavour: ModelFlavour) -> ModelOutline | None:
        """As :meth:`outline`, with the denoiser of :meth:`locate_with_denoiser`; by default of the same shapes."""
        return self.outline(model, flavour)

    # loading, in this order; each part is released before the next
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
        """The module to train, without its weights: parameters on the meta device, buffers with their values.

        Build it under accelerate's ``init_empty_weights()``. The core fills it from :meth:`denoiser_weights`.
        """

    @abstractmethod
    def denoiser_weights(self, location: ModelLocation) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight under its name in the module's ``state_dict()``, reading one at a time.

        :func:`difftrain.read_weights` does this for a folder of safetensors files. The core copies each tensor to the
        device before it asks for the next, so the host never holds the whole model. Tied weights may come under any
        one of their names.

        Raises:
            ModelError: If the files cannot be read.
        """

    def keep_in_float32(self) -> tuple[str, ...]:
        """Name patterns (fnmatch) of modules or weights that stay in float32 whatever the run's precision."""
        return ()

    @abstractmethod
    def adapter_targets(self, denoiser: nn.Module) -> list[str]:
        """Full names of the linear modules that an adapter wraps, by the family's target option.

        The denoiser is loaded by then, and its linear modules may be quantised.
        """

    def shared_input_linears(self, denoiser: nn.Module) -> Sequence[Sequence[str]]:
        """Groups of linear modules whose inputs are one tensor: queries, keys and values of one attention.

        ``fuse_qkv_projections`` computes each group as one product. Families that do not override this refuse the
        option. :func:`difftrain.testing.check_family` tests that the groups share.

        Returns:
            Full names. Modules of a group have one parent, whose forward finds them as its attributes and sets none.
        """
        return ()

    def fixed(self) -> dict[str, object]:
        """Options, by name, that a resumed run must keep because they decide which modules are trained."""
        return {}

    def blocks(self, denoiser: nn.Module) -> list[nn.Module]:
        """The repeated blocks that hold most of the weights, in the order of the forward.

        By default, modules of the classes in the denoiser's ``_repeated_blocks``, which diffusers' models have.
        """
        names = getattr(denoiser, "_repeated_blocks", None) or ()
        return [part for part in denoiser.modules() if type(part).__name__ in names]

    def enable_checkpointing(self, denoiser: nn.Module) -> None:
        """Recompute activations in the backward pass instead of keeping them, block by block.

        By default through the denoiser's ``enable_gradient_checkpointing()``, which diffusers' models have, or else
        around each of :meth:`blocks`.

        Raises:
            ModelError: If there are no blocks.
        """
        enable = getattr(denoiser, "enable_gradient_checkpointing", None)
        if enable is not None:
            enable()
            return
        recompute_blocks(self.blocks(denoiser), self.name)

    def keep_unquantized(self) -> tuple[str, ...]:
        """Name patterns (fnmatch) of modules that stay in full precision under any quantizer."""
        return ()

    # one step
    def noise_process(self, location: ModelLocation) -> NoiseProcess:
        """How noise is added to latents, and what the model then predicts; called once, before the first step.

        Args:
            location: For processes that read their noise levels from a file of the model.
        """
        return FlowMatching()

    def sigma_shift(self, latents: Tensor) -> float:
        """Factor s of ``s*sigma / (1 + (s - 1)*sigma)`` for target latents of this shape; 1 is no shift."""
        return 1.0

    def batch_key(self, sample: Sample) -> Hashable:
        """Samples share a batch only if these are equal, and the sizes of target and references too."""
        return ()

    def extras(self, sample: Sample, options: Options) -> Mapping[str, Tensor]:
        """Tensors of one sample that :meth:`build_input` needs beside latents and text; see :meth:`Loss.extras`."""
        return {}

    def tokens(self, batch: Batch) -> Mapping[str, int]:
        """Sequence length of one sample by group (target, references, text), for speed and estimates."""
        return {"target": batch.latents[0, 0].numel()}

    def attention_shapes(self, batch: Batch, denoiser: nn.Module) -> Sequence[AttentionShape]:
        """The attention calls of one forward over a batch, each shape once; empty if the family cannot say.

        For choosing kernels before the first step. :func:`difftrain.testing.check_family` compares it with a forward.
        """
        return ()

    @abstractmethod
    def collate_text(self, texts: Sequence[TextEmbeds]) -> TextEmbeds:
        """Batch the embeddings of several samples."""

    @abstractmethod
    def build_input(self, noisy: NoisyBatch, batch: Batch, denoiser: nn.Module) -> Input:
        """Build the input of :meth:`predict` from target and text; the flavour adds references.

        Args:
            denoiser: The module of :meth:`empty_denoiser` without any wrapper, for its config.
        """

    @abstractmethod
    def predict(self, denoiser: nn.Module, model_input: Input) -> Tensor:
        """Predict for the target only, [B, C, h, w]."""

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
        """A sampler over the model in training: stock inference, independent of the training forward."""
