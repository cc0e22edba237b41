"""What the plan of an epoch needs of samples: a few numbers each, in arrays."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from difftrain.types import Sample, Size

Numbers = npt.NDArray[np.int64]
Shape = tuple[Size, tuple[Size, ...]]
"""Sizes in which a target and its references are encoded."""


class SampleTable:
    """Numbers of samples, by their place in a sequence, and of their choices, by their place among all choices."""

    def __init__(self) -> None:
        self.datasets: list[str] = []
        """Ids of the datasets."""
        self.shapes: list[Shape] = []
        self._sets, self._names, self._bare = array("q"), array("Q"), array("q")
        self._first, self._shape, self._captions = array("q", [0]), array("q"), array("q")
        self._places: dict[Any, int] = {}
        self._keys: dict[Callable[[Sample], Hashable], Numbers] = {}

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> SampleTable:
        """Return the table of samples; one that they carry already is not made again."""
        known = getattr(samples, "table", None)
        if isinstance(known, cls):
            return known
        table = cls()
        for sample in samples:
            table.add(sample)
        return table

    def add(self, sample: Sample) -> None:
        """Add a sample at the end."""
        record = sample.target.record
        self._sets.append(self._place(self.datasets, sample.dataset_id))
        # two images of one folder may share a stem: the extension tells them apart
        self._names.append(_hashed(f"{sample.dataset_id}\0{record.key}\0{record.image.extension}"))
        target = sample.target.geometry.bucket
        self._bare.append(self._place(self.shapes, (target, ())))
        for choice in sample.choices:
            references = tuple([image.geometry.bucket for image in choice.references])
            self._shape.append(self._place(self.shapes, (target, references)))
            self._captions.append(len(sample.captions if choice.captions is None else choice.captions))
        self._first.append(len(self._shape))

    def __len__(self) -> int:
        return len(self._sets)

    @property
    def sets(self) -> Numbers:
        """Place of each sample's dataset in :attr:`datasets`."""
        return np.asarray(self._sets, dtype=np.int64)

    @property
    def names(self) -> npt.NDArray[np.uint64]:
        """A hash of each sample's name, which tells samples apart and does not depend on their order."""
        return np.asarray(self._names, dtype=np.uint64)

    @property
    def bare(self) -> Numbers:
        """Place in :attr:`shapes` of each sample without its references."""
        return np.asarray(self._bare, dtype=np.int64)

    @property
    def first(self) -> Numbers:
        """Place of each sample's first choice, and then the number of all choices."""
        return np.asarray(self._first, dtype=np.int64)

    @property
    def shape(self) -> Numbers:
        """Place of each choice's shape in :attr:`shapes`."""
        return np.asarray(self._shape, dtype=np.int64)

    @property
    def captions(self) -> Numbers:
        """Number of the captions that each choice draws from."""
        return np.asarray(self._captions, dtype=np.int64)

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each dataset."""
        return dict(zip(self.datasets, np.bincount(self.sets, minlength=len(self.datasets)).tolist(), strict=True))

    def bucket_counts(self) -> tuple[Counter[Size], Counter[Size]]:
        """Return how many targets are encoded in each size, and how many references of all choices."""
        targets, references = Counter[Size](), Counter[Size]()
        for shape, count in _counted(self.bare):
            targets[self.shapes[shape][0]] += count
        for shape, count in _counted(self.shape):
            for size in self.shapes[shape][1]:
                references[size] += count
        return targets, references

    def reference_counts(self) -> Numbers:
        """Return the number of references of each choice."""
        return np.array([len(references) for _, references in self.shapes] or [0], dtype=np.int64)[self.shape]

    def keys_by(self, key_of: Callable[[Sample], Hashable], samples: Iterable[Sample]) -> Numbers:
        """Return a number for each of the table's samples; equal for those with equal keys. Made once for a function.

        Args:
            samples: Those of the table, in order.
        """
        known = self._keys.get(key_of)
        if known is None:
            places: dict[Hashable, int] = {}
            numbers = array("q", (places.setdefault(key_of(sample), len(places)) for sample in samples))
            known = self._keys[key_of] = np.asarray(numbers, dtype=np.int64)
        return known

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays, by name, for :meth:`restored`."""
        return {
            "sets": self.sets,
            "names": self.names,
            "bare": self.bare,
            "first": self.first,
            "shape": self.shape,
            "captions": self.captions,
        }

    @classmethod
    def restored(
        cls, datasets: Sequence[str], shapes: Iterable[Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> SampleTable:
        """Return the table that these lists, perhaps after JSON, and :meth:`arrays` came from. It cannot grow."""
        table = cls()
        table.datasets = list(datasets)
        table.shapes = [(tuple(target), tuple(map(tuple, references))) for target, references in shapes]
        for name, values in arrays.items():
            setattr(table, f"_{name}", values)
        return table

    def _place(self, values: list[Any], value: Any) -> int:
        known = self._places.get(value)
        if known is None:
            values.append(value)
            known = self._places[value] = len(values) - 1
        return known


def _counted(places: Numbers) -> list[tuple[int, int]]:
    found, counts = np.unique(places, return_counts=True)
    return list(zip(found.tolist(), counts.tolist(), strict=True))


def _hashed(name: str) -> int:
    return xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def one_of_each_set(samples: Sequence[Sample]) -> list[Sample]:
    """Return the first sample of each dataset."""
    _, first = np.unique(SampleTable.of(samples).sets, return_index=True)
    return [samples[place] for place in sorted(first.tolist())]
