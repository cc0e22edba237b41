"""Hand-over types: what one stage of a run gives to the next.

Nothing here does work or imports a model library. Sizes are (width, height) in pixels, as in Pillow;
tensors are [batch, channel, height, width], as in torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol

if TYPE_CHECKING:
    import random

    import torch
    from PIL import Image
    from torch import Tensor


Size = tuple[int, int]
"""(width, height) in pixels."""

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of an upright source image; need not be whole."""

_LONGEST_ENDING = 5
"""Letters and digits of an extension, without its dot."""

TextEmbeds = Mapping[str, "Tensor"]
"""What a family's text encoders give for one caption; only the family knows the names and shapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryRules:
    """How a dataset entry wants its images sized; input of :func:`difftrain.data.buckets.assign_bucket`."""

    resolution: float
    """In the unit of ``resolution_type``."""
    resolution_type: str
    """``pixel`` shorter edge; ``area`` megapixels; ``pixel_area`` an edge whose square is the area."""
    alignment: int
    """Bucket edges are multiples of this, in pixels."""
    crop: bool = False
    crop_style: str = "center"
    crop_aspect: str = "preserve"
    crop_aspect_buckets: tuple[float, ...] = ()
    maximum_image_size: float | None = None
    """In the unit of ``resolution_type``; a larger image is first reduced to ``target_downsample_size``."""
    target_downsample_size: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """From the upright source image to the bucket: one resize, then one crop."""

    resize: Size
    crop: tuple[int, int]
    """(left, top) of the crop box, in the resized image."""
    bucket: Size
    """Size of the crop box, and so of the image that is encoded."""

    def __post_init__(self) -> None:
        for axis in (0, 1):
            if not 0 <= self.crop[axis] <= self.resize[axis] - self.bucket[axis]:
                raise ValueError(f"crop box {self.crop}+{self.bucket} lies outside the resized image {self.resize}")

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as :meth:`PIL.Image.Image.crop` takes it."""
        left, top = self.crop
        return left, top, left + self.bucket[0], top + self.bucket[1]

    @property
    def identity(self) -> str:
        """Part of the cache key."""
        return f"{self.resize}{self.crop}{self.bucket}"


class ImageMaker(Protocol):
    """What a recipe needs of a :class:`~difftrain.contracts.ConditioningGenerator`."""

    name: ClassVar[str]
    version: ClassVar[int]

    def identity(self) -> str: ...

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a conditioning image is made from a source image."""

    generator: ImageMaker
    seed: int

    def identity(self, source_hash: str) -> str:
        """Names the made image: the same text gives the same bytes on every machine."""
        cls = type(self.generator)
        return f"{source_hash}|{cls.name}|v{cls.version}|{self.generator.identity()}|seed{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage(ABC):
    """One image as its data source lists it; nothing of it is read.

    There may be millions, so it is small; worker processes open it, so it can be pickled.
    """

    key: str
    """Path below the source's root, posix, with the extension; or a row's id. Unique in the source."""
    captions: tuple[str, ...] | None = None
    """What the source says of the image, several for several wordings; None when it has no captions."""
    size: Size | None = None
    """Upright, if the source knows it: an image that a size limit leaves out is then never read."""
    references: tuple[SourceImage, ...] = ()
    """Images of the same row that condition this one, in order."""

    @property
    @abstractmethod
    def place(self) -> str:
        """How messages name the image, unique on this machine: a file's path, or ``/data/pairs.tar: 0001.png``."""

    @abstractmethod
    def stamp(self) -> str:
        """A text that changes whenever the image's bytes may have changed; found without reading them.

        Raises:
            OSError: If the image cannot be looked at.
        """

    @abstractmethod
    def open(self) -> BinaryIO:
        """The image file's bytes, from the first one; called from several threads and processes.

        Raises:
            OSError: If it cannot be opened.
        """

    @property
    def extension(self) -> str:
        """``.png``, as the key spells it; empty for a row's id, even one with a dot such as ``v1.5``."""
        ending = self.key.rpartition(".")[2]
        is_extension = 1 < len(ending) <= _LONGEST_ENDING and ending.isalnum() and ending[0].isalpha()
        return f".{ending}" if is_extension and len(ending) < len(self.key) else ""

    @property
    def stem(self) -> str:
        """The key without the extension."""
        return self.key[: len(self.key) - len(self.extension)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image found by the scan; pixels are not loaded."""

    dataset_id: str
    key: str
    """The image's key without the extension, in composed Unicode: what pairing compares."""
    image: SourceImage
    """Where the bytes are."""
    width: int
    """Pixels, after EXIF rotation."""
    height: int
    content_hash: str
    """sha256 of the image file's bytes; for a made image, of the recipe's identity."""
    captions: tuple[str, ...] | None = None
    """One is drawn per visit. None when there is no caption; an empty text is an empty caption."""
    recipe: Recipe | None = None
    """Set when the image is made from ``image`` in memory, on demand."""

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"{self.image.place}: size must be positive, got {self.width}x{self.height}")

    @property
    def size(self) -> Size:
        return self.width, self.height

    @property
    def name(self) -> str:
        """How messages name the image among those of its dataset: the key with the extension."""
        return self.key + self.image.extension


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedImage:
    """An image and the geometry that it is encoded with."""

    record: ImageRecord
    geometry: Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceChoice:
    """One way to condition a sample; a sample with several draws one per epoch."""

    references: tuple[PlacedImage, ...]
    captions: tuple[str, ...] | None = None
    """Captions of the reference set or generator; None takes the target's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One training example: a target image, how it may be conditioned, and what the instruction is."""

    dataset_id: str
    target: PlacedImage
    captions: tuple[str, ...]
    choices: tuple[ReferenceChoice, ...] = (ReferenceChoice(references=()),)
    """Never empty; a sample without references has one choice with none."""

    def __post_init__(self) -> None:
        assert self.choices, "a sample has at least one choice, even an empty one"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Cached tensors of B samples of one shape, ready for a step."""

    latents: Tensor
    """Normalised target latents, [B, C, h, w] or of whatever rank the family's encoder gives; float32."""
    references: Sequence[Tensor]
    """One tensor a reference slot, each [B, C, h', w']; every sample of a batch has as many."""
    text: TextEmbeds
    """Batched by the family."""
    keys: tuple[str, ...] = ()
    """``dataset_id/key`` of each sample, for messages and metrics."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What the family and the loss asked for of each sample, by name, [B, ...] each; floating point ones are float32.
    """

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Copies on ``device``; floating point tensors of the text and references become ``dtype``."""

        def move(tensor: Tensor) -> Tensor:
            cast = dtype if tensor.is_floating_point() else None
            return tensor.to(device=device, dtype=cast, non_blocking=True)

        return Batch(
            latents=self.latents.to(device=device, non_blocking=True),
            references=[move(reference) for reference in self.references],
            text={name: move(tensor) for name, tensor in self.text.items()},
            keys=self.keys,
            extras={name: tensor.to(device=device, non_blocking=True) for name, tensor in self.extras.items()},
        )


@dataclass(frozen=True, kw_only=True)
class NoisyBatch:
    """Noisy latents of a batch and what is to be predicted from them, as the family's noise process makes them."""

    noisy: Tensor
    """[B, C, h, w] or of whatever rank the latents have, float32."""
    sigma: Tensor
    """[B], noise level after the shift, float32; 0 is clean, 1 is noise."""
    timestep: Tensor
    """[B], what the model is told of the noise level: sigma itself for flow matching, whole steps for processes that
    count them."""
    target: Tensor
    """What the model should predict, shaped as ``noisy``, float32: the velocity for flow matching."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """One call of attention in a forward: what a kernel must be able to do."""

    batch: int
    heads: int
    queries: int
    """Tokens that attend."""
    keys: int
    """Tokens that are attended to."""
    head_dim: int
    """Features of a token in one head."""
    masked: bool = False
    """Whether an attention mask is given."""


@dataclass(frozen=True, kw_only=True)
class ModelLocation:
    """Where a model's files are and which content they have; found without loading a weight."""

    name: str
    """What the user wrote, or the flavour's hub id."""
    identity: str
    """Hash of content or the hub's commit: part of every cache key."""
    path: Path | None
    """Local diffusers folder; None means a hub download by ``name`` and ``revision``."""
    revision: str | None = None
    facts: Mapping[str, str] | None = None
    """What the files say of themselves, such as {"pipeline": "EditPipeline"}, to be compared with the flavours'
    :attr:`~difftrain.contracts.ModelFlavour.weights`. An empty mapping says nothing, and that is told to the user; None
    is for weights that are good for every flavour."""
    origins: tuple[str, ...] = ()
    """Models that the files name as what they were made of: hints, of which nothing is certain."""


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """One image to draw with the model as it is now."""

    text: TextEmbeds
    """Embeddings of one prompt, not batched."""
    negative_text: TextEmbeds | None
    references: tuple[Image.Image, ...]
    width: int
    height: int
    steps: int
    guidance: float
    guidance_real: float
    """True classifier-free guidance; 1.0 is off."""
    seed: int


class Sampler(Protocol):
    """Draws validation images."""

    def __call__(self, request: ValidationRequest) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One optimizer step, as observers see it."""

    step: int
    """Counts from 1."""
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    samples: int
    """Samples of this step over all processes."""
    epoch: int
    skipped: bool = False
    """True when loss or gradient were not finite, so that the weights were left as they were."""
    metrics: Mapping[str, float] = field(default_factory=dict)


class Phase(Protocol):
    """A running part of the start-up, with a count that is shown."""

    def advance(self, count: int = 1, item: str = "") -> None:
        """Count on; ``item`` names what is being worked on, shown when nothing moves for a minute."""


class Reporter(Protocol):
    """Shows what a run is doing; given to every stage that can take more than two seconds."""

    def phase(self, name: str, total: int | None = None) -> AbstractContextManager[Phase]:
        """A named start-up phase with a progress bar and an ETA when ``total`` is known."""

    def say(self, text: str) -> None:
        """One line for the user."""
