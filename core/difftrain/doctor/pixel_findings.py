"""What the pixels of the pairs tell: no edit, hardly one, a shift, a zoom, the same image twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from difftrain.doctor.measures import PairMeasures
from difftrain.doctor.pairs import Pair, identity
from difftrain.doctor.pixel_pass import PixelFacts, images_of
from difftrain.doctor.record_findings import in_datasets
from difftrain.errors import first_few
from difftrain.types import Finding, ImageRecord

LEAST_SHIFT = 1.5
"""Pixels of the encoded target from which a shift is noted."""
LEAST_ZOOM = 0.004
"""Relative scale from which a zoom is noted: 2 pixels at the edge of 1024."""


def pixel_findings(pairs: Sequence[Pair], facts: PixelFacts) -> list[Finding]:
    """Return notes about everything that was compared."""
    found = [pair for pair in pairs if not pair.is_made]  # made ones lie on their targets, whatever blurs them
    return [
        *_broken(pairs, facts),
        *_noted(pairs, "no_edit", lambda pair: _has_equal_pixels(pair, facts), _name, _NO_EDIT),
        *_measured(found, facts, "shifted", _is_shifted, _shift_shown, _SHIFTED),
        *_measured(found, facts, "zoomed", _is_zoomed, _zoom_shown, _ZOOMED),
        *_measured(pairs, facts, "near_equal", _is_near_equal, _difference_shown, _NEAR_EQUAL),
        *_same_pixels(pairs, facts),
    ]


_Words = tuple[str, str]
"""What the pairs are, and the fix."""
_NO_EDIT = ("pairs have equal pixels, so nothing is edited", "replace the target or the reference, or remove the pair")
_SHIFTED = (
    "targets seem to be shifted against their reference",
    "crop both images of a pair at the same place, or align them; the model would learn the shift",
)
_ZOOMED = (
    "targets seem to be zoomed against their reference",
    "resize and crop both images of a pair alike, or align them; the model would learn the zoom",
)
_NEAR_EQUAL = (
    "targets differ from their reference by no more than the noise of saving",
    "look at them: without a visible edit the model learns to copy",
)


def _has_equal_pixels(pair: Pair, facts: PixelFacts) -> bool:
    """Return whether the pixels are equal, though the bytes are not; equal bytes are the audit's."""
    if pair.reference is None or pair.reference.record.content_hash == pair.target.record.content_hash:
        return False
    own = facts.pixel_hashes.get(pair.target.record.content_hash)
    return own is not None and own == facts.pixel_hashes.get(pair.reference.record.content_hash)


def _is_zoomed(measures: PairMeasures) -> bool:
    return abs(measures.zoom - 1) >= LEAST_ZOOM


def _is_shifted(measures: PairMeasures) -> bool:
    return not _is_zoomed(measures) and math.hypot(measures.right, measures.down) >= LEAST_SHIFT


def _is_near_equal(measures: PairMeasures) -> bool:
    return measures.difference > 0 and measures.changed == 0


def shift_text(measures: PairMeasures) -> str:
    """Return ``3 px right, 2 px up``."""
    parts = []
    for value, forward, back in ((measures.right, "right", "left"), (measures.down, "down", "up")):
        if abs(value) >= 0.5:
            parts.append(f"{abs(value):.1f}".removesuffix(".0") + f" px {forward if value > 0 else back}")
    return ", ".join(parts) or "not at all"


def _name(pair: Pair) -> str:
    return pair.target.record.name


def _shift_shown(pair: Pair, measures: PairMeasures) -> str:
    return f"{_name(pair)} ({shift_text(measures)})"


def _zoom_shown(pair: Pair, measures: PairMeasures) -> str:
    return f"{_name(pair)} ({100 * measures.zoom:.1f} %)"


def _difference_shown(pair: Pair, measures: PairMeasures) -> str:
    return f"{_name(pair)} ({measures.difference:.2f} %)"


def _measured(
    pairs: Iterable[Pair],
    facts: PixelFacts,
    kind: str,
    has: Callable[[PairMeasures], bool],
    show: Callable[[Pair, PairMeasures], str],
    words: _Words,
) -> Iterator[Finding]:
    """Yield the findings of a kind that the measures of a pair decide; the largest first."""

    def chosen(pair: Pair) -> bool:
        found = facts.of(pair)
        return found is not None and has(found) and not _has_equal_pixels(pair, facts)

    def shown(pair: Pair) -> str:
        found = facts.of(pair)
        assert found is not None, "it was chosen by its measures"
        return show(pair, found)

    def size(pair: Pair) -> float:
        found = facts.of(pair)
        assert found is not None, "it was chosen by its measures"
        return -max(math.hypot(found.right, found.down), 512 * abs(found.zoom - 1))

    yield from _noted(sorted(filter(chosen, pairs), key=size), kind, lambda _: True, shown, words)


def _noted(
    pairs: Iterable[Pair], kind: str, has: Callable[[Pair], bool], show: Callable[[Pair], str], words: _Words
) -> Iterator[Finding]:
    for dataset, some in in_datasets(filter(has, pairs)).items():
        records = tuple({identity(pair.target.record): pair.target.record for pair in some}.values())
        yield Finding(
            kind=kind,
            level="note",
            dataset=dataset,
            text=f"{len(some)} {words[0]}: {first_few(map(show, some))}",
            fix=words[1],
            records=records,
            names=tuple(record.name for record in records),
        )


def _broken(pairs: Iterable[Pair], facts: PixelFacts) -> Iterator[Finding]:
    broken: dict[str, ImageRecord] = {}
    for pair in pairs:
        for placed in images_of(pair):
            if placed.record.content_hash in facts.broken:
                broken[placed.record.content_hash] = placed.record
    for dataset in dict.fromkeys(record.dataset_id for record in broken.values()):
        own = {key: record for key, record in broken.items() if record.dataset_id == dataset}
        yield Finding(
            kind="undecodable",
            level="note",
            dataset=dataset,
            text=f"{len(own)} images cannot be decoded: {first_few(facts.broken[key] for key in own)}",
            fix="replace these images, or take them out",
            records=tuple(own.values()),
            names=tuple(record.name for record in own.values()),
        )


def _same_pixels(pairs: Iterable[Pair], facts: PixelFacts) -> Iterator[Finding]:
    """Note targets that show the same pixels in files with other bytes."""
    first: dict[str, ImageRecord] = {}
    found: dict[str, dict[str, ImageRecord]] = {}
    for record in {identity(pair.target.record): pair.target.record for pair in pairs}.values():
        pixels = facts.pixel_hashes.get(record.content_hash)
        if pixels is None:
            continue
        earlier = first.setdefault(pixels, record)
        if earlier.content_hash != record.content_hash:
            other = earlier.name if earlier.dataset_id == record.dataset_id else f"{earlier.dataset_id}/{earlier.name}"
            found.setdefault(record.dataset_id, {})[f"{record.name} = {other}"] = record
    for dataset, images in found.items():
        yield Finding(
            kind="same_pixels",
            level="note",
            dataset=dataset,
            text=f"{len(images)} images show the same pixels as another: {first_few(images)}",
            fix="remove them, or use repeats to show an image more often",
            records=tuple(images.values()),
            names=tuple(record.name for record in images.values()),
        )
