"""Images as a data source lists them and as the scan finds them; nothing holds pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol

from difftrain.types.sizes import Panel, Point, Size

if TYPE_CHECKING:
    import random

    from PIL import Image

_LONGEST_EXTENSION = 5
"""Letters and digits, without the dot."""


class ImageMaker(Protocol):
    """The part of :class:`~difftrain.contracts.ConditioningGenerator` that a recipe needs."""

    name: ClassVar[str]
    version: ClassVar[int]

    def identity(self) -> str: ...

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a reference image is made from a source image."""

    generator: ImageMaker
    seed: int

    def identity(self, source_hash: str) -> str:
        """Names the generated image: the same text gives the same bytes on every machine."""
        cls = type(self.generator)
        return f"{source_hash}|{cls.name}|v{cls.version}|{self.generator.identity()}|seed{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """Images that are stored in one piece: to read one of them costs as much as to read all."""

    place: str
    """The file that they are in, and which part of its rows."""
    number: int
    """In that file."""
    bytes: int
    """Memory that the piece takes while its images are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage(ABC):
    """One image as its data source lists it; its bytes are not read yet.

    A source may list millions, so keep it small. Worker processes open images, so it must pickle.
    """

    key: str
    """Posix path below the source's root, with the extension; or a row's id. Unique in the source."""
    captions: tuple[str, ...] | None = None
    """The captions that the source has for the image, one per wording; None when it has none."""
    size: Size | None = None
    """Upright, if the source knows it: images that a size limit leaves out are then never read."""
    references: tuple[SourceImage, ...] = ()
    """Images of the same row that condition this one, in order."""
    panel: Panel | None = None
    """The part that is meant of a file with several pictures side by side; None for the whole. ``size`` is the part's,
    and :attr:`place` names the part too."""

    @property
    @abstractmethod
    def place(self) -> str:
        """How messages name the image, unique on this machine: a file's path, or ``/data/pairs.tar: 0001.png``."""

    @abstractmethod
    def stamp(self) -> str:
        """A text that changes whenever the image's bytes may have changed, found without reading them.

        Raises:
            OSError: If the image cannot be looked at.
        """

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open the image file at its first byte; called from several threads and processes.

        Raises:
            OSError: If it cannot be opened.
        """

    @property
    def shelf(self) -> Shelf | None:
        """The piece that holds the image with others; None if it is read by itself. Images of one shelf follow each
        other in the order of the keys, and are best read together."""
        return None

    @property
    def extension(self) -> str:
        """``.png``, as the key spells it; empty for a row's id, even one with a dot such as ``v1.5``."""
        return extension_of(self.key)

    @property
    def stem(self) -> str:
        """The key without the extension."""
        return self.key[: len(self.key) - len(self.extension)]


def extension_of(key: str) -> str:
    """Return the extension of a :attr:`SourceImage.key`."""
    _, dot, ending = key.rpartition(".")
    return _extension(ending) if dot else ""


@lru_cache(maxsize=256)
def _extension(ending: str) -> str:
    """Return what stands behind a dot as an extension; empty if it is none. Cached, since millions share a few."""
    is_one = 1 < len(ending) <= _LONGEST_EXTENSION and ending.isalnum() and ending[0].isalpha()
    return f".{ending}" if is_one else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image found by the scan; pixels are not loaded."""

    dataset_id: str
    key: str
    """The image's key without the extension, in composed Unicode (NFC). Pairing compares it."""
    image: SourceImage
    """Where the bytes are."""
    width: int
    """Pixels, after EXIF rotation."""
    height: int
    content_hash: str
    """Hex XXH3 of the image file's bytes, and of which panel of it is meant; for a generated image, sha256 of the
    recipe's identity."""
    captions: tuple[str, ...] | None = None
    """One is drawn per visit. None means no caption; an empty text is an empty caption."""
    recipe: Recipe | None = None
    """Set when the image is generated from ``image`` in memory, on demand."""
    focus: Point | None = None
    """What its crop is centred on, if its dataset's crop style looks at pixels and has found something."""

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"{self.image.place}: size must be positive, got {self.width}x{self.height}")

    @property
    def size(self) -> Size:
        return self.width, self.height

    @property
    def name(self) -> str:
        """How messages name the image within its dataset: the key with the extension."""
        return self.key + self.image.extension
