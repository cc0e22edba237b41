"""Which parts of an epoch show images that are stored together: datasets that stream. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from difftrain.data.packed.sample_table import Numbers, SampleTable
from difftrain.data.seeding import derive_seed
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.types import Sample, Shelf

WINDOW_BYTES = 448 * 2**20
"""What the shelves of one window may take: a little less than a process keeps decoded, which it reads once then."""
Shelves = tuple[Shelf, ...]


class ShelfWindows:
    """The windows of one epoch.

    The shelves of a dataset come in an order drawn for the epoch. As many as memory holds make a window; its samples
    are shuffled, and batches do not reach beyond it. So an epoch reads each shelf once.
    """

    def __init__(
        self,
        table: SampleTable,
        samples: Sequence[Sample],
        epoch: int,
        rules: EpochRules,
        *,
        limit: int = WINDOW_BYTES,
    ) -> None:
        """Sort the samples of the datasets that stream.

        Args:
            table: Of the samples.
            epoch: Counts from 0.
            limit: Bytes of the windows of all datasets together.
        """
        self.kinds: Numbers = np.zeros(len(table), dtype=np.int64)
        """Of each sample: equal numbers are one window; 0 is none."""
        self._number = np.zeros(len(table), dtype=np.int64)
        self._of = np.ones(len(table), dtype=np.int64)
        streaming = [name for name in table.datasets if rules.of(name).by_shelf]
        if not streaming:
            return
        keys = table.keys_by(shelves_of, samples)
        kinds = 1
        for name in streaming:
            own = np.flatnonzero(table.sets == table.datasets.index(name))
            _, first, key = np.unique(keys[own], return_index=True, return_inverse=True)
            found = [shelves_of(samples[int(place)]) for place in own[first]]
            windows = _windows(found, _Draw(rules.seed, epoch, name), limit // len(streaming))
            self._number[own], self._of[own] = windows[key], windows.max(initial=0) + 1
            self.kinds[own] = np.where(np.array(list(map(len, found)))[key] > 0, kinds + windows[key], 0)
            kinds += int(windows.max(initial=0)) + 1

    def shares(self, places: Numbers, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return where in the epoch, in [0, 1), samples stand that are at these shares of their windows; [N] each."""
        within: npt.NDArray[np.float64] = (self._number[places] + shares) / self._of[places]
        return within


def shelves_of(sample: Sample) -> Shelves:
    """Return the shelves of a sample's images, the one that places it in the epoch first."""
    references = (image for choice in sample.choices for image in choice.references)
    images = (sample.target, *references)
    return tuple(shelf for image in images if (shelf := image.record.image.shelf) is not None)


class _Draw:
    """The order of one dataset's shelves in one epoch."""

    def __init__(self, seed: int, epoch: int, dataset_id: str) -> None:
        self._seed, self._epoch, self._dataset_id = seed, epoch, dataset_id

    def __call__(self, shelf: Shelf) -> tuple[int, str]:
        # by the name of the file, so that an epoch is the same after a set has moved
        file = shelf.place.rpartition("/")[2]
        return derive_seed(self._seed, "shelves", self._epoch, self._dataset_id, file, shelf.number), shelf.place


def _windows(found: Sequence[Shelves], draw: _Draw, limit: int) -> Numbers:
    """Return the number of the window of each of these keys; of samples without shelves, 0."""
    needed: dict[Shelf, set[Shelf]] = defaultdict(set)
    for shelves in found:
        if shelves:
            needed[shelves[0]].update(shelves)
    numbers = _numbered(needed, sorted(needed, key=draw), limit)
    return np.array([numbers[shelves[0]] if shelves else 0 for shelves in found], dtype=np.int64)


def _numbered(needed: Mapping[Shelf, set[Shelf]], order: Iterable[Shelf], limit: int) -> dict[Shelf, int]:
    """Return the window of each shelf that places samples; with it all shelves are read that they need."""
    numbers: dict[Shelf, int] = {}
    number, taken = 0, set[Shelf]()
    for shelf in order:
        with_this = taken | needed[shelf]
        if taken and sum(one.bytes for one in with_this) > limit:
            number, with_this = number + 1, needed[shelf]
        numbers[shelf], taken = number, with_this
    return numbers
