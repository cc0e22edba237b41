"""Compares the pixels of every pair, on every core; what is known from an earlier run is not read again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from difftrain.doctor import alignment
from difftrain.doctor.compare import Compared, Task, compare, names_of
from difftrain.doctor.measures import MeasureStore, PairMeasures
from difftrain.doctor.pairs import Pair
from difftrain.types import ImageRecord, PlacedImage, Reporter

SECONDS_A_MEGAPIXEL = 0.03
SECONDS_A_PAIR = 0.08
"""Measured on one core of a server; for the estimate."""
_AT_ONCE = 64
"""Pairs that are remembered together, so that an interrupted pass continues from there."""


@dataclass(frozen=True, kw_only=True)
class PixelFacts:
    """What comparing found."""

    pixel_hashes: dict[str, str] = field(default_factory=dict)
    """Equal for equal pixels; by content hash."""
    measures: dict[str, PairMeasures] = field(default_factory=dict)
    """By :attr:`~difftrain.doctor.pairs.Pair.key`."""
    broken: dict[str, str] = field(default_factory=dict)
    """Why an image cannot be decoded, by content hash."""

    def of(self, pair: Pair) -> PairMeasures | None:
        """Return the measures of a pair; None without a reference of its shape, and before it is compared."""
        return self.measures.get(pair.key) if pair.is_comparable else None


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What is known, and what is left to compare."""

    known: PixelFacts
    tasks: Sequence[Task]

    @property
    def seconds(self) -> float:
        """How long the rest will take, roughly."""
        pixels = sum(_pixels(task.pair) for task in self.tasks)
        work = pixels / 1e6 * SECONDS_A_MEGAPIXEL + SECONDS_A_PAIR * sum(task.measures for task in self.tasks)
        return work / _threads()


def look_ahead(pairs: Sequence[Pair], store: MeasureStore, thumbnails: Path | None) -> Ahead:
    """Return what earlier runs found, and the tasks that are left.

    Args:
        thumbnails: Folder for thumbnails; None writes none.
    """
    records = [placed.record for pair in pairs for placed in images_of(pair)]
    known = PixelFacts(
        pixel_hashes=store.pixel_hashes([record.content_hash for record in records]),
        measures=store.measures([pair.key for pair in pairs if pair.is_comparable]),
    )
    tasks, begun = [], set[str]()  # pairs may have equal content
    for pair in pairs:
        own = [placed.record for placed in images_of(pair)]
        hashes = any(one.content_hash not in known.pixel_hashes and one.content_hash not in begun for one in own)
        files = dict(_files(own, thumbnails, begun)) if thumbnails is not None else {}
        key = pair.key if pair.is_comparable else None
        measured = key is not None and key not in begun and not _is_known(known.measures.get(key))
        begun.update(one.content_hash for one in own)
        begun.update([key] if key is not None else [])
        if hashes or files or measured:
            tasks.append(Task(pair=pair, hashes=hashes, measures=measured, thumbnails=files))
    return Ahead(known=known, tasks=tasks)


def compare_all(ahead: Ahead, store: MeasureStore, reporter: Reporter) -> PixelFacts:
    """Do the tasks, in parallel, and return everything that is known then."""
    facts = ahead.known
    if not ahead.tasks:
        return facts
    if alignment.can_estimate():
        alignment.use_one_thread()
    with reporter.phase("compare pixels", len(ahead.tasks)) as phase, ThreadPoolExecutor(_threads()) as pool:
        for part in _parts(ahead.tasks):
            hashes: dict[str, str] = {}
            measures: dict[str, PairMeasures] = {}
            for task, found in zip(part, pool.map(compare, part), strict=True):
                _take(task, found, hashes, measures, facts.broken)
                phase.advance(item=task.pair.target.record.key)
            store.remember(hashes, measures)
            facts.pixel_hashes.update(hashes)
            facts.measures.update(measures)
    return facts


def _take(
    task: Task,
    found: Compared,
    hashes: dict[str, str],
    measures: dict[str, PairMeasures],
    broken: dict[str, str],
) -> None:
    hashes.update(found.pixel_hashes)
    broken.update(found.broken)
    if found.measures is not None:
        measures[task.pair.key] = found.measures


def _is_known(measures: PairMeasures | None) -> bool:
    wanted = alignment.METHOD if alignment.can_estimate() else 0
    return measures is not None and measures.aligned_by in (wanted, alignment.METHOD)


def _files(records: Sequence[ImageRecord], thumbnails: Path, begun: set[str]) -> Iterator[tuple[str, Path]]:
    for record in records:
        path = thumbnails.joinpath(*names_of(record))
        if record.content_hash not in begun and not path.exists():
            yield record.content_hash, path


def images_of(pair: Pair) -> tuple[PlacedImage, ...]:
    """Return the images of a pair."""
    return (pair.target,) if pair.reference is None else (pair.target, pair.reference)


def _pixels(pair: Pair) -> int:
    return sum(placed.record.width * placed.record.height for placed in images_of(pair))


def _parts(tasks: Sequence[Task]) -> Iterator[Sequence[Task]]:
    return (tasks[start : start + _AT_ONCE] for start in range(0, len(tasks), _AT_ONCE))


def _threads() -> int:
    """Return one thread a core: decoding, numpy and opencv work in parallel."""
    return min(16, os.cpu_count() or 1)
