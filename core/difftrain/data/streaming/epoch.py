"""Plans one epoch: which sample with which references and caption, in which order and batches. Pure.

Visits are first put in order, by their names and the sizes of the sets, and batches are formed along that order. The
taken part of an epoch is a set of visits, so a run that resumes with another batch size, process count or dataset shows
each remaining visit as often as it should. All visits are drawn at once, as arrays; a :class:`Visit` is made when its
batch is due. Start with :func:`plan_epoch`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Hashable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from difftrain.data.packed.sample_table import Numbers, SampleTable
from difftrain.data.seeding import SEED_BITS
from difftrain.data.streaming.draws import Words, drawn_below, uniform, visit_numbers
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.data.streaming.shelf_windows import ShelfWindows
from difftrain.types import PlacedImage, Sample

Batch = tuple["Visit", ...]
Taken = Collection[int] | npt.NDArray[np.int64]


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
class _Drawn:
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

    def at(self, places: npt.NDArray[np.intp]) -> _Drawn:
        """Return the visits at these places."""
        return _Drawn(
            samples=self.samples[places],
            numbers=self.numbers[places],
            choices=self.choices[places],
            captions=self.captions[places],
            bare=self.bare[places],
        )


class EpochPlan(Sequence[Batch]):
    """The batches of an epoch, in order; the visits of a batch are made when it is asked for."""

    def __init__(
        self, samples: Sequence[Sample], epoch: int, rules: EpochRules, visits: _Drawn, starts: Numbers, kinds: Numbers
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


def plan_epoch(
    samples: Sequence[Sample],
    epoch: int,
    rules: EpochRules,
    taken: Taken = (),
    active: Container[str] | None = None,
) -> EpochPlan:
    """Return the batches of one epoch, or of what is left of it, in order.

    Every sample is shown ``repeats + 1`` times, minus what ``probability`` leaves out. A batch takes the first visit
    left, and the next ones that can be stacked on it: of the same shape, batch size and batch key. The last batch of a
    shape may be smaller than its batch size.

    Args:
        taken: Numbers of the visits already taken.
        active: Ids of the datasets that take part; None is all.
    """
    table = SampleTable.of(samples)
    windows = ShelfWindows(table, samples, epoch, rules)
    places, numbers = _remaining(table, epoch, rules, taken, active, windows)
    shown: Sequence[Sample] = samples
    if rules.placed:
        shown = [rules.placed(sample, epoch) for sample in samples]
        table = SampleTable.of(shown)
    visits = _drawn(table, places, numbers, rules)
    kinds, sizes = _kinds(table, shown, visits, rules, windows)
    order, starts = _batched(kinds, sizes)
    return EpochPlan(samples, epoch, rules, visits.at(order), starts, kinds[order][starts[:-1]])


def draw_visit(sample: Sample, repeat: int, epoch: int, rules: EpochRules) -> Visit:
    """Draw references, caption and dropouts of one visit.

    The draws depend on the sample's name, not on its place in a list, so adding a file to a dataset does not
    change the draws of the others.

    Args:
        repeat: 0 is a sample's first visit of an epoch; ``repeats`` adds more.
    """
    table = SampleTable.of([rules.placed(sample, epoch) if rules.placed else sample])
    numbers = visit_numbers(table.names, seed=rules.seed, epoch=epoch, repeat=repeat)
    one = np.zeros(1, dtype=np.int64)
    visits = _drawn(table, one, numbers, rules)
    ((visit,),) = EpochPlan([sample], epoch, rules, visits, np.array([0, 1]), one)
    return visit


def encoded_area(image: PlacedImage) -> int:
    """Return the pixels of an image as it is encoded."""
    width, height = image.geometry.bucket
    return width * height


def largest_area(sample: Sample) -> int:
    """Return the pixels of the target and of the largest references that a visit may have."""
    references = (sum(map(encoded_area, choice.references)) for choice in sample.choices)
    return encoded_area(sample.target) + max(references, default=0)


def epochs_vary(samples: Sequence[Sample], rules: EpochRules) -> bool:
    """Return whether epochs may differ in their number of batches, because draws or schedules change them."""
    table = SampleTable.of(samples)
    own = [rules.of(name) for name in table.datasets]
    if rules.placed or rules.reference_dropout > 0 or any(one.probability < 1 or one.is_scheduled for one in own):
        return True
    # an epoch leaves out more or fewer of a set that it does not wait for
    if rules.evenly and any(one.ignores_epochs for one in own):
        return True
    first_shapes = np.repeat(table.shape[table.first[:-1]], np.diff(table.first))
    return bool((table.shape != first_shapes).any())


def _remaining(
    table: SampleTable,
    epoch: int,
    rules: EpochRules,
    taken: Taken,
    active: Container[str] | None,
    windows: ShelfWindows,
) -> tuple[Numbers, Words]:
    """Return every remaining visit of an epoch in order: the sample's place, and the visit's number."""
    sets, names = table.sets, table.names
    sizes = {name: size for name, size in table.counts().items() if size and (active is None or name in active)}
    spans = _spans(sizes, rules)
    waited_for = [span for name, span in spans.items() if not rules.of(name).ignores_epochs]
    end = max(waited_for or spans.values(), default=0.0)
    found: list[tuple[npt.NDArray[np.float64], Words, Numbers]] = []
    for name, span in spans.items():
        own = rules.of(name)
        places = np.flatnonzero(sets == table.datasets.index(name))
        # a set that the epoch does not wait for starts again when it is through, and is cut off at the end
        rounds = math.ceil(end / span) if own.ignores_epochs else 1
        for repeat in range(rounds * (own.repeats + 1)):
            numbers = visit_numbers(names[places], seed=rules.seed, epoch=epoch, repeat=repeat)
            when = (repeat // (own.repeats + 1) + windows.shares(places, numbers / 2**SEED_BITS)) * span
            kept = np.ones(len(places), dtype=bool)
            if own.ignores_epochs:
                kept &= when < end
            if own.probability < 1:
                kept &= uniform(numbers, f"left out {rules.seed}") < own.probability
            found.append((when[kept], numbers[kept], places[kept]))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    when, numbers, places = (np.concatenate(columns) for columns in zip(*found, strict=True))
    if len(taken):
        left = ~np.isin(numbers, np.array(list(taken), dtype=np.uint64))
        when, numbers, places = when[left], numbers[left], places[left]
    order = np.lexsort((numbers, when))
    return places[order], numbers[order]


def _spans(sizes: dict[str, int], rules: EpochRules) -> dict[str, float]:
    """Return over which part of the epoch the visits of each dataset are spread.

    The span is 1 for all, or, for sets that come evenly, the number of visits: one each unit of time.
    """
    if not rules.evenly:
        return dict.fromkeys(sizes, 1.0)
    return {name: float(size * (rules.of(name).repeats + 1)) for name, size in sizes.items()}


def _drawn(table: SampleTable, places: Numbers, numbers: Words, rules: EpochRules) -> _Drawn:
    """Draw references, captions and dropouts of visits to the samples at these places."""
    first = table.first
    choices = drawn_below(numbers, "choice", first[places + 1] - first[places])
    captions = drawn_below(numbers, "caption", table.captions[first[places] + choices])
    captions[uniform(numbers, "without caption") < rules.caption_dropout] = -1
    bare = uniform(numbers, "without references") < rules.reference_dropout
    return _Drawn(samples=places, numbers=numbers, choices=choices, captions=captions, bare=bare)


def _kinds(
    table: SampleTable, samples: Sequence[Sample], visits: _Drawn, rules: EpochRules, windows: ShelfWindows
) -> tuple[Numbers, Numbers]:
    """Return which visits can be stacked, those with equal numbers, and how many of them a batch takes; [N] each."""
    own = [rules.of(name) for name in table.datasets]
    sizes = np.array([rules.batch_size_of(name) for name in table.datasets] or [1], dtype=np.int64)
    alike: dict[Hashable, int] = {}
    manners = np.array(
        [
            alike.setdefault((one.regularises, one.strength, int(size)), len(alike))
            for one, size in zip(own, sizes, strict=False)
        ]
        or [0],
        dtype=np.int64,
    )
    sets = table.sets[visits.samples]
    shapes = np.where(
        visits.bare, table.bare[visits.samples], table.shape[table.first[visits.samples] + visits.choices]
    )
    keys = np.zeros_like(sets)
    if rules.batch_key:
        keys = table.keys_by(rules.batch_key, samples)[visits.samples]
    columns = np.stack([shapes, manners[sets], keys, windows.kinds[visits.samples]])
    kinds = columns[0]
    for column in columns[1:]:
        kinds = kinds * (int(column.max(initial=0)) + 1) + column
    return kinds, sizes[sets]


def _batched(kinds: Numbers, sizes: Numbers) -> tuple[npt.NDArray[np.intp], Numbers]:
    """Return the order of visits, batch after batch, and where batches start in it: [N] and [B + 1].

    A batch begins at every size-th visit of its kind, and takes that visit's place.
    """
    by_kind = np.argsort(kinds, kind="stable")
    begins = np.flatnonzero(np.diff(kinds[by_kind], prepend=-1))
    rank = np.arange(len(kinds)) - np.repeat(begins, np.diff(begins, append=len(kinds)))
    is_first = rank % sizes[by_kind] == 0
    first_of = by_kind[is_first][np.cumsum(is_first) - 1] if len(kinds) else by_kind
    order = by_kind[np.argsort(first_of, kind="stable")]
    starts = np.flatnonzero(np.diff(np.sort(first_of), prepend=-1))
    return order, np.append(starts, len(kinds))
