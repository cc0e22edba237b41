"""Plans one epoch: which sample with which references and caption, in which order and batches. Pure.

Visits are first put in order, by their names and the sizes of the sets, and batches are formed along that order. The
taken part of an epoch is a set of visits, so a run that resumes with another batch size, process count or dataset shows
each remaining visit as often as it should. All visits are drawn at once, as arrays; those of a batch are made when it
is due. Start with :func:`plan_epoch`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from difftrain.data.packed.sample_table import Numbers, SampleTable
from difftrain.data.seeding import SEED_BITS
from difftrain.data.streaming.draws import Words, drawn_below, uniform, visit_numbers
from difftrain.data.streaming.epoch_plan import DrawnVisits, EpochPlan, Visit
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.data.streaming.shelf_windows import ShelfWindows
from difftrain.types import PlacedImage, Sample

Taken = Collection[int] | npt.NDArray[np.int64]


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


def _drawn(table: SampleTable, places: Numbers, numbers: Words, rules: EpochRules) -> DrawnVisits:
    """Draw references, captions and dropouts of visits to the samples at these places."""
    first = table.first
    choices = drawn_below(numbers, "choice", first[places + 1] - first[places])
    captions = drawn_below(numbers, "caption", table.captions[first[places] + choices])
    captions[uniform(numbers, "without caption") < rules.caption_dropout] = -1
    bare = uniform(numbers, "without references") < rules.reference_dropout
    return DrawnVisits(samples=places, numbers=numbers, choices=choices, captions=captions, bare=bare)


def _kinds(
    table: SampleTable, samples: Sequence[Sample], visits: DrawnVisits, rules: EpochRules, windows: ShelfWindows
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
