"""Plans one epoch: which sample with which references and caption, in which order and batches. Pure.

Visits are first put in order, by their names and the sizes of the sets, and batches are formed along that order. The
taken part of an epoch is a set of visits, so a run that resumes with another batch size, process count or dataset shows
each remaining visit as often as it should. Start with :func:`plan_epoch`.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Container, Hashable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from difftrain.data.seeding import SEED_BITS, derive_seed
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.data.streaming.shelf_windows import ShelfWindows, Window
from difftrain.types import PlacedImage, Sample


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
    return numbered_visit(sample, visit_number(sample, repeat, epoch, rules), epoch, rules, rng)


def numbered_visit(
    sample: Sample, number: int, epoch: int, rules: EpochRules, rng: random.Random | None = None
) -> Visit:
    """Draw the visit with that :func:`visit_number`; see :func:`draw_visit`."""
    sample = rules.placed(sample, epoch) if rules.placed else sample
    if rng is None:
        rng = random.Random(number)
    elif _has_draws(sample, rules):  # seeding takes half of the time
        rng.seed(number)
    choice = sample.choices[rng.randrange(len(sample.choices))]
    captions = sample.captions if choice.captions is None else choice.captions
    caption = captions[rng.randrange(len(captions))]
    without_caption = rng.random() < rules.caption_dropout
    without_references = rng.random() < rules.reference_dropout
    own = rules.of(sample.dataset_id)
    return Visit(
        sample=sample,
        references=() if without_references else choice.references,
        caption="" if without_caption else caption,
        number=number,
        regularises=own.regularises,
        noise_offset=own.noise_offset,
        strength=own.strength,
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
    samples: Sequence[Sample],
    epoch: int,
    rules: EpochRules,
    taken: Container[int] = frozenset(),
    active: Container[str] | None = None,
) -> list[tuple[Visit, ...]]:
    """Return the batches of one epoch, or of what is left of it, in order.

    Every sample is shown ``repeats + 1`` times, minus what ``probability`` leaves out. A batch takes the first visit
    left, and the next ones that can be stacked on it: of the same shape, batch size and batch key. The last batch of a
    shape may be smaller than its batch size.

    Args:
        taken: Numbers of the visits already taken.
        active: Ids of the datasets that take part; None is all.
    """
    by_shape: dict[Hashable, list[Visit]] = defaultdict(list)
    starts: list[tuple[Hashable, int, int]] = []
    windows = ShelfWindows(samples, epoch, rules)
    for visit in _visits(samples, epoch, rules, taken, active, windows):
        size = rules.batch_size_of(visit.sample.dataset_id)
        own_key = rules.batch_key(visit.sample) if rules.batch_key else ()
        key = visit.shape_key, size, own_key, windows.batch_key(visit.sample)
        # a batch begins at every size-th visit of its key, and takes that visit's place
        if len(by_shape[key]) % size == 0:
            starts.append((key, len(by_shape[key]), size))
        by_shape[key].append(visit)
    return [tuple(by_shape[key][start : start + size]) for key, start, size in starts]


def fill_share(batches: Sequence[Sequence[Visit]], rules: EpochRules) -> float:
    """Return how full batches are on average, in [0, 1]: samples per place; 1 for no batches."""
    places = sum(rules.batch_size_of(batch[0].sample.dataset_id) for batch in batches)
    return sum(map(len, batches)) / places if places else 1.0


def epochs_vary(samples: Sequence[Sample], rules: EpochRules) -> bool:
    """Return whether epochs may differ in their number of batches, because draws or schedules change them."""
    own = [rules.of(name) for name in {sample.dataset_id for sample in samples}]
    if rules.placed or rules.reference_dropout > 0 or any(one.probability < 1 or one.is_scheduled for one in own):
        return True
    # an epoch leaves out more or fewer of a set that it does not wait for
    if rules.evenly and any(one.ignores_epochs for one in own):
        return True
    return any(
        len({tuple(image.geometry.bucket for image in choice.references) for choice in sample.choices}) > 1
        for sample in samples
    )


def _visits(
    samples: Sequence[Sample],
    epoch: int,
    rules: EpochRules,
    taken: Container[int],
    active: Container[str] | None,
    windows: ShelfWindows,
) -> list[Visit]:
    """Return every remaining visit of an epoch, in order."""
    taking_part = [sample for sample in samples if active is None or sample.dataset_id in active]
    spans = _spans(taking_part, rules)
    waited_for = [span for name, span in spans.items() if not rules.of(name).ignores_epochs]
    end = max(waited_for or spans.values(), default=0.0)
    remaining = [
        (place, number, sample)
        for sample in taking_part
        for place, number in _places(sample, epoch, rules, spans[sample.dataset_id], end, windows.of(sample))
        if number not in taken
    ]
    remaining.sort(key=itemgetter(0, 1))
    rng = random.Random()
    return [numbered_visit(sample, number, epoch, rules, rng) for _, number, sample in remaining]


def _spans(samples: Sequence[Sample], rules: EpochRules) -> dict[str, float]:
    """Return over which part of the epoch the visits of each dataset are spread.

    The span is 1 for all, or, for sets that come evenly, the number of visits: one each unit of time.
    """
    sizes = Counter(sample.dataset_id for sample in samples)
    if not rules.evenly:
        return dict.fromkeys(sizes, 1.0)
    return {name: float(size * (rules.of(name).repeats + 1)) for name, size in sizes.items()}


def _places(
    sample: Sample, epoch: int, rules: EpochRules, span: float, end: float, window: Window
) -> Iterator[tuple[float, int]]:
    """Yield place in the epoch and number of each visit of a sample.

    A set that the epoch does not wait for starts again when it is through, and is cut off at the end.
    """
    own = rules.of(sample.dataset_id)
    rounds = math.ceil(end / span) if own.ignores_epochs else 1
    for repeat in range(rounds * (own.repeats + 1)):
        number = visit_number(sample, repeat, epoch, rules)
        place = (repeat // (own.repeats + 1) + window.place(number / 2**SEED_BITS)) * span
        if own.ignores_epochs and place >= end:
            continue
        if own.probability >= 1 or _draw(number, rules) < own.probability:
            yield place, number


def _draw(number: int, rules: EpochRules) -> float:
    """Return a number in [0, 1) that decides whether an epoch takes a visit."""
    return random.Random(derive_seed(rules.seed, "left out", number)).random()
