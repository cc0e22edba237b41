"""The shapes that batches of a run will have, before any is read: sizes of targets and references, and counts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice
from typing import TYPE_CHECKING

from difftrain.data.streaming.epoch import encoded_area, epochs_vary, largest_area
from difftrain.data.streaming.epoch_plan import Visit
from difftrain.data.streaming.rounds import Rounds
from difftrain.types import Batch, PlacedImage

if TYPE_CHECKING:
    from difftrain.data.streaming.batch_reader import BatchReader


@dataclass(frozen=True, kw_only=True, slots=True)
class ComingShape:
    """A shape that batches have."""

    visits: tuple[Visit, ...]
    """A batch of it."""
    times: int
    """How often it comes in the epochs that were looked at; 0 for one that only may come."""

    @property
    def name(self) -> str:
        return shape_name(self.visits)

    @property
    def area(self) -> int:
        """Encoded pixels of all targets and references."""
        images = (image for visit in self.visits for image in (visit.sample.target, *visit.references))
        return sum(map(encoded_area, images))


class ComingBatches:
    """What is known of a run's batches before its first step."""

    def __init__(self, rounds: Rounds, reader: BatchReader, steps: int) -> None:
        """Know of ``steps`` optimizer steps from the start of the rounds on; plan them only when asked."""
        self._rounds = rounds
        self._reader = reader
        self._steps = steps

    @cached_property
    def shapes(self) -> Sequence[ComingShape]:
        """All shapes, largest first; none if the run has no samples."""
        return coming_shapes(self._rounds, self._steps)

    def read(self, shape: ComingShape) -> Batch:
        """Return a batch of that shape.

        Raises:
            DataError: If its files cannot be read.
        """
        return self._reader.read(shape.visits)


def shape_name(visits: Sequence[Visit]) -> str:
    """Return what messages call the shape of a batch: ``2 x 1024x1024 + 1 reference 768x1344``."""
    first = visits[0]
    several = f"{len(visits)} x " if len(visits) > 1 else ""
    references = [_size(image) for image in first.references]
    kind = ", regularising" if first.regularises else ""
    kind += f", at strength {first.strength:g}" if first.strength != 1 else ""
    if not references:
        return f"{several}{_size(first.sample.target)}{kind}"
    plural = "" if len(references) == 1 else "s"
    sizes = ", ".join(dict.fromkeys(references))
    return f"{several}{_size(first.sample.target)} + {len(references)} reference{plural} {sizes}{kind}"


def _size(image: PlacedImage) -> str:
    width, height = image.geometry.bucket
    return f"{width}x{height}"


def coming_shapes(rounds: Rounds, steps: int) -> list[ComingShape]:
    """Return the shapes of the batches of the next steps, largest first.

    Looks at whole epochs until one has no shape that is new. Where draws change the epochs, rare shapes may be missing,
    but not the largest.
    """
    if rounds.is_scheduled:
        return _scheduled_shapes(rounds, steps)
    shapes: dict[Hashable, ComingShape] = {}
    left = steps * rounds.micro_batches * rounds.processes
    ends = count(rounds.start.epoch) if rounds.epochs is None else range(rounds.start.epoch, rounds.epochs)
    varies = epochs_vary(rounds.samples, rounds.rules)
    for epoch in ends:
        known, batches = len(shapes), rounds.batches_of(epoch)
        for visits, times in batches.kinds(left):
            _count(visits, times, rounds, shapes)
        left -= min(left, len(batches))
        begun_before = epoch == rounds.start.epoch and rounds.start.samples > 0
        if left <= 0 or not (begun_before or (varies and len(shapes) > known)):
            break
    if varies and rounds.samples:
        largest = _largest(rounds)
        shapes.setdefault(_key(largest.visits, rounds), largest)
    return sorted(shapes.values(), key=lambda shape: shape.area, reverse=True)


def _scheduled_shapes(rounds: Rounds, steps: int) -> list[ComingShape]:
    """Return the shapes of all batches of the next steps, each looked at: sets come and go with the steps."""
    shapes: dict[Hashable, ComingShape] = {}
    for step in islice(rounds.steps(), steps):
        for visits in (batch for part in step for batch in part.batches):
            _count(visits, 1, rounds, shapes)
    return sorted(shapes.values(), key=lambda shape: shape.area, reverse=True)


def _count(visits: tuple[Visit, ...], times: int, rounds: Rounds, shapes: dict[Hashable, ComingShape]) -> None:
    key = _key(visits, rounds)
    before = shapes.get(key) or ComingShape(visits=visits, times=0)
    shapes[key] = replace(before, times=before.times + times)


def _key(visits: Sequence[Visit], rounds: Rounds) -> Hashable:
    batch_key = rounds.rules.batch_key(visits[0].sample) if rounds.rules.batch_key else ()
    return visits[0].shape_key, batch_key, len(visits)


def _largest(rounds: Rounds) -> ComingShape:
    """Return the largest shape that any draw may give."""
    sample = max(rounds.samples, key=lambda one: largest_area(one) * rounds.rules.batch_size_of(one.dataset_id))
    choice = max(sample.choices, key=lambda choice: sum(map(encoded_area, choice.references)))
    caption = (choice.captions or sample.captions)[0]
    own = rounds.rules.of(sample.dataset_id)
    visit = Visit(
        sample=sample,
        references=choice.references,
        caption=caption,
        number=0,
        regularises=own.regularises,
        strength=own.strength,
    )
    return ComingShape(visits=(visit,) * rounds.rules.batch_size_of(sample.dataset_id), times=0)
