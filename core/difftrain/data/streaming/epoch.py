"""Plans one epoch: which sample with which references and caption, in which order and batches. Pure.

Visits are first put in order, by their names alone, and batches are formed along that order. The taken part of an
epoch is a set of visits, so a run that resumes with another batch size, process count or dataset shows each remaining
visit as often as it should. Start with :func:`plan_epoch`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from difftrain.data.seeding import derive_seed
from difftrain.types import PlacedImage, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """One showing of a sample, with every random choice made."""

    sample: Sample
    references: tuple[PlacedImage, ...]
    caption: str
    number: int
    """Identifies the visit within the run and gives its place in the epoch: visits are sorted by number."""

    @property
    def name(self) -> str:
        return f"{self.sample.dataset_id}/{self.sample.target.record.key}"

    @property
    def shape_key(self) -> Hashable:
        """Visits with equal keys can be stacked: the target's bucket and every reference's."""
        return self.sample.target.geometry.bucket, tuple(image.geometry.bucket for image in self.references)


@dataclass(frozen=True, kw_only=True)
class EpochRules:
    """Everything that shapes an epoch besides the samples; all of it comes from the config."""

    seed: int
    batch_size: int
    repeats: Mapping[str, int]
    """Extra visits per epoch by dataset id; 0 shows each sample once."""
    probability: Mapping[str, float] = field(default_factory=dict)
    """Share of a dataset's visits that an epoch takes, by dataset id; 1 for datasets not named."""
    caption_dropout: float = 0.0
    reference_dropout: float = 0.0
    batch_key: Callable[[Sample], Hashable] | None = None
    """The family's batch key; None lets all samples of one shape share batches."""


def encoded_area(image: PlacedImage) -> int:
    """Return the pixels of an image as it is encoded."""
    width, height = image.geometry.bucket
    return width * height


def largest_area(sample: Sample) -> int:
    """Return the pixels of the target and of the largest references that a visit may have."""
    references = (sum(map(encoded_area, choice.references)) for choice in sample.choices)
    return encoded_area(sample.target) + max(references, default=0)


def draw_visit(sample: Sample, repeat: int, epoch: int, rules: EpochRules, rng: random.Random | None = None) -> Visit:
    """Draw references, caption and dropouts of one visit.

    The draws depend on the sample's name, not on its place in a list, so adding a file to a dataset does not
    change the draws of the others.

    Args:
        repeat: 0 is a sample's first visit of an epoch; ``repeats`` adds more.
        rng: A generator to use, whatever its state is: making one takes longer than all draws of a visit.
    """
    number = visit_number(sample, repeat, epoch, rules)
    if rng is None:
        rng = random.Random(number)
    elif _has_draws(sample, rules):  # seeding takes half of the time
        rng.seed(number)
    choice = sample.choices[rng.randrange(len(sample.choices))]
    captions = sample.captions if choice.captions is None else choice.captions
    caption = captions[rng.randrange(len(captions))]
    without_caption = rng.random() < rules.caption_dropout
    without_references = rng.random() < rules.reference_dropout
    return Visit(
        sample=sample,
        references=() if without_references else choice.references,
        caption="" if without_caption else caption,
        number=number,
    )


def _has_draws(sample: Sample, rules: EpochRules) -> bool:
    """Return whether visits of a sample may differ."""
    if rules.caption_dropout > 0 or rules.reference_dropout > 0 or len(sample.choices) > 1:
        return True
    captions = sample.choices[0].captions
    return len(sample.captions if captions is None else captions) > 1


def visit_number(sample: Sample, repeat: int, epoch: int, rules: EpochRules) -> int:
    """Return the number of one visit, in [0, 2**63).

    Args:
        repeat: 0 is a sample's first visit of an epoch; ``repeats`` adds more.
    """
    record = sample.target.record
    # two images of one folder may share a stem: the extension tells them apart
    return derive_seed(rules.seed, "visit", epoch, sample.dataset_id, record.key, record.image.extension, repeat)


def plan_epoch(
    samples: Sequence[Sample], epoch: int, rules: EpochRules, taken: Container[int] = frozenset()
) -> list[tuple[Visit, ...]]:
    """Return the batches of one epoch, or of what is left of it, in order.

    Every sample is shown ``repeats + 1`` times, minus what ``probability`` leaves out. A batch takes the first visit
    left, and the next ones that can be stacked on it: of the same shape and batch key. The last batch of a shape
    may be smaller than ``batch_size``.

    Args:
        taken: Numbers of the visits already taken.
    """
    by_shape: dict[Hashable, list[Visit]] = defaultdict(list)
    places: list[tuple[Hashable, int]] = []
    for visit in _visits(samples, epoch, rules, taken):
        key = visit.shape_key, rules.batch_key(visit.sample) if rules.batch_key else ()
        places.append((key, len(by_shape[key])))
        by_shape[key].append(visit)
    # a batch begins at every batch_size-th visit of its shape, and takes that visit's place
    starts = (place for place in places if place[1] % rules.batch_size == 0)
    return [tuple(by_shape[key][start : start + rules.batch_size]) for key, start in starts]


def epochs_vary(samples: Sequence[Sample], rules: EpochRules) -> bool:
    """Return whether epochs may differ in their number of batches, because draws change counts or shapes."""
    if rules.reference_dropout > 0 or any(rules.probability.get(sample.dataset_id, 1.0) < 1 for sample in samples):
        return True
    return any(
        len({tuple(image.geometry.bucket for image in choice.references) for choice in sample.choices}) > 1
        for sample in samples
    )


def _visits(samples: Sequence[Sample], epoch: int, rules: EpochRules, taken: Container[int]) -> list[Visit]:
    """Return every remaining visit of an epoch, in order."""
    rng = random.Random()
    visits = [
        draw_visit(sample, repeat, epoch, rules, rng)
        for sample in samples
        for repeat in range(rules.repeats.get(sample.dataset_id, 0) + 1)
        if not _left_out(sample, repeat, epoch, rules)
    ]
    return sorted((visit for visit in visits if visit.number not in taken), key=attrgetter("number"))


def _left_out(sample: Sample, repeat: int, epoch: int, rules: EpochRules) -> bool:
    probability = rules.probability.get(sample.dataset_id, 1.0)
    if probability >= 1:
        return False
    seed = derive_seed(rules.seed, "left out", visit_number(sample, repeat, epoch, rules))
    return random.Random(seed).random() >= probability
