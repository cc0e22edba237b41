"""What one epoch shows: which sample with which references and caption, in which batches. Pure."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from difftrain.data.seeding import derive_seed
from difftrain.types import PlacedImage, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """One showing of a sample, with everything drawn that could vary."""

    sample: Sample
    references: tuple[PlacedImage, ...]
    caption: str

    @property
    def name(self) -> str:
        return f"{self.sample.dataset_id}/{self.sample.target.record.key}"

    @property
    def shape_key(self) -> Hashable:
        """Visits of one shape can be stacked: the target's bucket and every reference's."""
        return self.sample.target.geometry.bucket, tuple(image.geometry.bucket for image in self.references)


@dataclass(frozen=True, kw_only=True)
class EpochRules:
    """What shapes an epoch beside the samples; all of it comes from the config."""

    seed: int
    batch_size: int
    repeats: Mapping[str, int]
    """Extra visits an epoch by dataset id; 0 shows each sample once."""
    probability: Mapping[str, float] = field(default_factory=dict)
    """Share of a dataset's visits that an epoch takes, by dataset id; 1 where it is not named."""
    caption_dropout: float = 0.0
    reference_dropout: float = 0.0
    batch_key: Callable[[Sample], Hashable] | None = None
    """The family's; None lets all samples of one shape share batches."""


def draw_visit(sample: Sample, repeat: int, epoch: int, rules: EpochRules) -> Visit:
    """Draw references, caption and dropouts of one visit.

    The draws depend on the sample's name and content, not on its place in a list, so that adding a file to a
    dataset does not change what is drawn for the others.
    """
    record = sample.target.record
    rng = random.Random(derive_seed(rules.seed, "visit", epoch, sample.dataset_id, record.key, repeat))
    choice = sample.choices[rng.randrange(len(sample.choices))]
    captions = sample.captions if choice.captions is None else choice.captions
    caption = captions[rng.randrange(len(captions))]
    without_caption = rng.random() < rules.caption_dropout
    without_references = rng.random() < rules.reference_dropout
    return Visit(
        sample=sample,
        references=() if without_references else choice.references,
        caption="" if without_caption else caption,
    )


def plan_epoch(samples: Sequence[Sample], epoch: int, rules: EpochRules) -> list[tuple[Visit, ...]]:
    """The batches of one epoch, in order.

    Every sample is shown ``repeats + 1`` times, less what ``probability`` leaves out. A batch holds visits of one
    shape and one batch key; the last batch of a shape may be smaller than ``batch_size``.
    """
    rng = random.Random(derive_seed(rules.seed, "order", epoch))
    by_shape: dict[Hashable, list[Visit]] = defaultdict(list)
    for sample in samples:
        for repeat in range(rules.repeats.get(sample.dataset_id, 0) + 1):
            if _left_out(sample, repeat, epoch, rules):
                continue
            visit = draw_visit(sample, repeat, epoch, rules)
            by_shape[visit.shape_key, rules.batch_key(sample) if rules.batch_key else ()].append(visit)
    batches: list[tuple[Visit, ...]] = []
    for visits in by_shape.values():
        rng.shuffle(visits)
        batches += [tuple(visits[i : i + rules.batch_size]) for i in range(0, len(visits), rules.batch_size)]
    rng.shuffle(batches)
    return batches


def _left_out(sample: Sample, repeat: int, epoch: int, rules: EpochRules) -> bool:
    probability = rules.probability.get(sample.dataset_id, 1.0)
    if probability >= 1:
        return False
    seed = derive_seed(rules.seed, "left out", epoch, sample.dataset_id, sample.target.record.key, repeat)
    return random.Random(seed).random() >= probability
