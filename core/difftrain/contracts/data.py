"""Contracts of everything that turns files into samples. Start with :class:`ConditioningGenerator`."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from difftrain.config.options import Options
from difftrain.types import Geometry, GeometryRules, ImageRecord

if TYPE_CHECKING:
    from PIL import Image


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
