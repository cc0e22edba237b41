"""Which parts of an epoch show images that are stored together: datasets that stream. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from difftrain.data.seeding import derive_seed
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.types import Sample, Shelf

WINDOW_BYTES = 448 * 2**20
"""What the shelves of one window may take: a little less than a process keeps decoded, which it reads once then."""


class Window(NamedTuple):
    """A part of the epoch of one dataset."""

    number: int
    of: int
    """Windows of that dataset."""


_WHOLE = Window(0, 1)


class PlacedWindows(NamedTuple):
    """The windows of all samples, as arrays [N]."""

    number: npt.NDArray[np.int64]
    of: npt.NDArray[np.int64]
    key: npt.NDArray[np.int64]
    """Equal for samples that may share a batch, so that none reaches beyond a window."""


class ShelfWindows:
    """The windows of one epoch.

    The shelves of a dataset come in an order drawn for the epoch. As many as memory holds make a window; its samples
    are shuffled, and batches do not reach beyond it. So an epoch reads each shelf once.
    """

    def __init__(self, samples: Iterable[Sample], epoch: int, rules: EpochRules, *, limit: int = WINDOW_BYTES) -> None:
        """Sort the samples of the datasets that stream; epochs count from 0."""
        needed: dict[str, dict[Shelf, set[Shelf]]] = defaultdict(lambda: defaultdict(set))
        streaming = {name for name, own in rules.sets.items() if own.by_shelf}
        for sample in samples if streaming else ():
            if sample.dataset_id in streaming:
                shelves = _shelves(sample)
                if shelves:
                    needed[sample.dataset_id][shelves[0]].update(shelves)

        def draw(name: str, shelf: Shelf) -> tuple[int, str]:
            # by the name of the file, so that an epoch is the same after a set has moved
            file = shelf.place.rpartition("/")[2]
            return derive_seed(rules.seed, "shelves", epoch, name, file, shelf.number), shelf.place

        self._windows = {
            name: _windows(sets, sorted(sets, key=partial(draw, name)), limit // len(needed))
            for name, sets in needed.items()
        }

    def __bool__(self) -> bool:
        """Return whether any dataset streams."""
        return bool(self._windows)

    def of(self, sample: Sample) -> Window:
        """Return the window of a sample; the whole epoch for one that is read by itself."""
        windows = self._windows.get(sample.dataset_id)
        shelves = _shelves(sample) if windows else ()
        return windows[shelves[0]] if windows and shelves else _WHOLE

    def placed(self, samples: Iterable[Sample]) -> PlacedWindows | None:
        """Return the window of each sample; None if no dataset streams."""
        if not self:
            return None
        found = [
            (self.of(sample), sample.dataset_id if sample.dataset_id in self._windows else None) for sample in samples
        ]
        keys: dict[Hashable, int] = {}
        return PlacedWindows(
            number=np.array([window.number for window, _ in found], dtype=np.int64),
            of=np.array([window.of for window, _ in found], dtype=np.int64),
            key=np.array([keys.setdefault(each, len(keys)) for each in found], dtype=np.int64),
        )


def _shelves(sample: Sample) -> Sequence[Shelf]:
    """Return the shelves of a sample's images, the one that places it in the epoch first."""
    references = (image for choice in sample.choices for image in choice.references)
    images = (sample.target, *references)
    return [shelf for image in images if (shelf := image.record.image.shelf) is not None]


def _windows(needed: Mapping[Shelf, set[Shelf]], order: Iterable[Shelf], limit: int) -> dict[Shelf, Window]:
    """Return the window of each shelf that places samples; with it all shelves are read that they need."""
    numbers: dict[Shelf, int] = {}
    number, taken = 0, set[Shelf]()
    for shelf in order:
        with_this = taken | needed[shelf]
        if taken and sum(one.bytes for one in with_this) > limit:
            number, with_this = number + 1, needed[shelf]
        numbers[shelf], taken = number, with_this
    return {shelf: Window(at, number + 1) for shelf, at in numbers.items()}
