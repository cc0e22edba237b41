"""Contracts of everything that turns files into samples. Start with :class:`ConditioningGenerator`."""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from difftrain.config.options import Options
from difftrain.types import Geometry, GeometryRules, ImageRecord, Point, SourceImage

if TYPE_CHECKING:
    from PIL import Image


class ConditioningGenerator(Options, ABC):
    """Makes a reference image from a target image: ``conditioning: [{"type": NAME, ...fields}]``."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    """Raise it when equal options give other pixels: images are then made again."""

    @abstractmethod
    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """Return the reference image of one target.

        Args:
            image: The target, RGB, upright, in its original size.
            rng: Seeded from content, options, version and seed; the only source of randomness allowed.

        Returns:
            An RGB image of the same size.
        """


class CropStyle(Options, ABC):
    """Chooses what the crop of an image is centred on: ``crop_style: NAME`` with ``crop: true``. Fields become dataset
    keys.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raise it when equal options give other points: images are then looked at again."""

    @abstractmethod
    def focus(self, image: Image.Image) -> Point | None:
        """Return the point that the crop keeps as near to its centre as the image's edges allow; None is the middle.

        Equal images must give equal points. The core asks once for each image, from several threads at a time, and
        remembers the answer.

        Args:
            image: RGB, upright, in its original size.

        Returns:
            (x, y) in shares of width and height, 0 to 1: (0, 0) is the upper left corner.
        """


class Pairing(Options, ABC):
    """Defines how a reference follows its target image: ``conditioning_type: NAME`` on a reference set, or on a target
    set whose data source gives references with its images.

    Fields become dataset keys.
    """

    name: ClassVar[str]

    @property
    def crops_by_own_rules(self) -> bool:
        """Whether :meth:`place` crops references as the rules of their own entry say. If not, a crop style of that
        entry need not look at them."""
        return True

    @abstractmethod
    def place(
        self, *, target: ImageRecord, target_geometry: Geometry, reference: ImageRecord, own_rules: GeometryRules
    ) -> Geometry:
        """Return the geometry for encoding the reference.

        Args:
            target: The target image.
            target_geometry: The target's geometry, assigned by the rules of its dataset.
            reference: The reference image.
            own_rules: The rules of the reference's dataset entry, with what the entry's crop style found in this image.

        Raises:
            PairingError: If the two cannot be a pair, for example because their aspects differ too much.
        """


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a data source, and whatever it does not use."""

    images: Sequence[SourceImage]
    """Every image, sorted by key."""
    others: Sequence[str] = ()
    """Other files, as paths below the root: captions, videos, unsupported image formats."""
    written: Mapping[str, int] = field(default_factory=dict)
    """Number of images in folders that runs write, which are not data, by the folder's name."""
    skipped: Sequence[str] = ()
    """Hidden and system files and folders."""
    unusable: Sequence[str] = ()
    """Files, folders or rows that should hold images but cannot be used, each with its reason: the run cannot start."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Keys of images that options of the source leave out, by the option's name. They are counted, and their partners
    in other datasets are not reported as missing one."""
    notes: Sequence[str] = ()
    """Anything else the user should know."""


class DataSource(Options, ABC):
    """Where a dataset's images come from: ``type: NAME``. Fields become dataset keys."""

    name: ClassVar[str]
    gives_references: ClassVar[bool] = False
    """Whether images may bring the references of their row. The entry's ``conditioning_type`` then says how these are
    placed, and the entry is a target set unless another one names it in ``conditioning_data``."""

    @property
    def place(self) -> str:
        """Where the images are, as hints name it: ``folder photos``, ``tar file pairs.tar``."""
        return f"data source {self.name!r}"

    @property
    def streams(self) -> bool:
        """Whether images are to be encoded only when a batch first needs them, and in an order that reads what is
        stored together (:attr:`~difftrain.types.SourceImage.shelf`) at one time."""
        return False

    @abstractmethod
    def list_images(self) -> Iterable[SourceImage]:
        """Return every image, in any order, without opening any.

        Raises:
            DataError: If the source does not exist or cannot be read.
        """

    def survey(self, written: Mapping[str, Path]) -> Listing:
        """Return the sorted images, except those that runs write, and whatever else the source can report.

        Args:
            written: Folders that this run writes, by the name that messages use.

        Raises:
            DataError: If the source does not exist or cannot be read.
        """
        prefixes = {os.path.abspath(folder) + os.sep: name for name, folder in written.items()}  # noqa: PTH100
        images: list[SourceImage] = []
        left_out: Counter[str] = Counter()
        for image in self.list_images():
            inside = next((name for prefix, name in prefixes.items() if image.place.startswith(prefix)), None)
            if inside is None:
                images.append(image)
            else:
                left_out[inside] += 1
        return Listing(images=sorted(images, key=lambda image: image.key), written=left_out)


class CaptionSource(Options, ABC):
    """Provides the captions of an image: ``caption_strategy: NAME``. Fields become dataset keys.

    It is not used if the data source itself gives captions and the dataset entry names no strategy.
    """

    name: ClassVar[str]
    repeats_source: ClassVar[bool] = False
    """Whether these are the captions of the data source, chosen by name."""
    remedy: ClassVar[str] = "give each one a caption"
    """What a user can do about images without a caption."""

    @abstractmethod
    def files(self, image: SourceImage) -> tuple[str | Path, ...]:
        """Return the files whose change must change the captions, existing or not; may be empty."""

    @abstractmethod
    def captions(self, image: SourceImage) -> tuple[str, ...] | None:
        """Return the captions of one image, or None if it has none.

        Raises:
            DataError: If a caption file cannot be read, or the image is not a file and so cannot have one.
        """
