"""The plan of an epoch: all visits as arrays, and its batches, whose visits are made when they are due."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from difftrain.data.packed.sample_table import Numbers
from difftrain.data.streaming.draws import Words
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.types import PlacedImage, Sample

Batch = tuple["Visit", ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """One showing of a sample, with every random choice made."""

    sample: Sample
    references: tuple[PlacedImage, ...]
    caption: str
    number: int
    """Identifies the visit within the run and gives its place in the epoch."""
    regularises: bool = False
    """Whether its target is the prediction of the model without the adapter."""
    noise_offset: float = 0.0
    """Added to the logit of its noise level."""
    strength: float = 1.0
    """Factor on the adapter's effect."""

    @property
    def name(self) -> str:
        return f"{self.sample.dataset_id}/{self.sample.target.record.key}"

    @property
    def shape_key(self) -> Hashable:
        """Visits with equal keys can be stacked: the buckets, the kind of target and the strength."""
        references = tuple(image.geometry.bucket for image in self.references)
        return self.sample.target.geometry.bucket, references, self.regularises, self.strength


@dataclass(frozen=True, kw_only=True)
class DrawnVisits:
    """Visits of an epoch in order, with every random choice made: arrays [N]."""

    samples: Numbers
    """Places of the samples."""
    numbers: Words
    choices: Numbers
    """Which of its sample's choices."""
    captions: Numbers
    """Which of the choice's captions; -1 for none."""
    bare: npt.NDArray[np.bool_]
    """Whether the references are dropped."""

    def at(self, places: npt.NDArray[np.intp]) -> DrawnVisits:
        """Return the visits at these places."""
        return DrawnVisits(
            samples=self.samples[places],
            numbers=self.numbers[places],
            choices=self.choices[places],
            captions=self.captions[places],
            bare=self.bare[places],
        )


class EpochPlan(Sequence[Batch]):
    """The batches of an epoch, in order; the visits of a batch are made when it is asked for."""

    def __init__(
        self,
        samples: Sequence[Sample],
        epoch: int,
        rules: EpochRules,
        visits: DrawnVisits,
        starts: Numbers,
        kinds: Numbers,
    ) -> None:
        """Plan batches.

        Args:
            visits: Batch after batch.
            starts: [B + 1], where each batch begins, and where the last one ends.
            kinds: [B], equal for batches whose visits could share one.
        """
        self._samples, self._epoch, self._rules = samples, epoch, rules
        self._visits, self._starts, self._kinds = visits, starts, kinds

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, place: int) -> Batch: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Batch]: ...

    def __getitem__(self, place: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        return tuple(map(self._visit, range(int(self._starts[place]), int(self._starts[place + 1]))))

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Numbers of all visits in the order of the batches, [N]."""
        return self._visits.numbers.astype(np.int64)

    @property
    def fill_share(self) -> float:
        """How full batches are on average, in [0, 1]: visits per place; 1 for no batches."""
        places = sum(
            self._rules.batch_size_of(self._samples[int(self._visits.samples[start])].dataset_id) * count
            for start, count in self._alike(len(self), by_size=False)
        )
        return len(self._visits.numbers) / places if places else 1.0

    def kinds(self, count: int | None = None) -> list[tuple[Batch, int]]:
        """Return a batch of each shape and size among the first ``count``, and how many are like it."""
        found = self._alike(len(self) if count is None else min(count, len(self)), by_size=True)
        places = {int(start): place for place, start in enumerate(self._starts[:-1])}
        return [(self[places[start]], times) for start, times in found]

    def _alike(self, count: int, *, by_size: bool) -> list[tuple[int, int]]:
        """Return where the first batch of each kind starts, and how many are of that kind."""
        kinds = self._kinds[:count]
        sizes = np.diff(self._starts[: count + 1]) if by_size else np.zeros_like(kinds)
        _, first, times = np.unique(np.stack([kinds, sizes]), axis=1, return_index=True, return_counts=True)
        order = np.argsort(first)
        return list(zip(self._starts[first[order]].tolist(), times[order].tolist(), strict=True))

    def _visit(self, place: int) -> Visit:
        visits, rules = self._visits, self._rules
        sample = self._samples[int(visits.samples[place])]
        if rules.placed:
            sample = rules.placed(sample, self._epoch)
        choice = sample.choices[int(visits.choices[place])]
        captions = sample.captions if choice.captions is None else choice.captions
        caption = int(visits.captions[place])
        own = rules.of(sample.dataset_id)
        return Visit(
            sample=sample,
            references=() if visits.bare[place] else choice.references,
            caption="" if caption < 0 else captions[caption],
            number=int(visits.numbers[place]),
            regularises=own.regularises,
            noise_offset=own.noise_offset,
            strength=own.strength,
        )
