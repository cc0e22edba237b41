"""What sizes and captions of the pairs tell; no pixel is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from difftrain.doctor.instructions import describes
from difftrain.doctor.pairs import Pair, aspects_differ, identity
from difftrain.errors import first_few
from difftrain.types import Finding, ImageRecord, Level, PlacedImage

MOST_ENLARGED = 1.5
"""Factor of an edge beyond which an enlarged image is blurred more than a model should learn from."""
LOOSE_ASPECT = 0.1
"""Relative difference of two shapes beyond which references are noted."""

CAPTIONS_AT_ONCE = 1000
"""Captions that a tokenizer gets at once: it takes some 5 KB for each."""

LongCaptions = Callable[[Sequence[str]], Sequence[str]]
"""Returns the captions that the text encoder does not read to the end."""


def record_findings(pairs: Sequence[Pair], long_captions: LongCaptions | None) -> list[Finding]:
    """Return notes and hints about sizes and captions.

    Args:
        long_captions: None if the tokenizer is not there.
    """
    return [
        *_in_several_sets(pairs),
        *_aspects(pairs),
        *_tiny(pairs),
        *_described(pairs),
        *(_too_long(pairs, long_captions) if long_captions is not None else ()),
    ]


def in_datasets(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Return pairs by the dataset of their target."""
    found: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        found[pair.dataset].append(pair)
    return found


def _in_several_sets(pairs: Iterable[Pair]) -> Iterator[Finding]:
    """Note targets with equal bytes in several datasets; within one, the audit notes them."""
    first: dict[str, ImageRecord] = {}
    found: dict[str, ImageRecord] = {}
    for pair in pairs:
        record = pair.target.record
        earlier = first.setdefault(record.content_hash, record)
        if earlier.dataset_id != record.dataset_id:
            found[f"{record.dataset_id}/{record.name} = {earlier.dataset_id}/{earlier.name}"] = record
    if found:
        yield Finding(
            kind="duplicate",
            level="note",
            dataset="",
            text=f"{len(found)} images are in several datasets: {first_few(found)}",
            fix="remove them from one, or use repeats to show an image more often",
            records=tuple(found.values()),
            names=tuple(found),
        )


def _aspects(pairs: Iterable[Pair]) -> Iterator[Finding]:
    def differ(pair: Pair) -> bool:
        reference = pair.reference
        return reference is not None and aspects_differ(pair.target.record.size, reference.record.size) > LOOSE_ASPECT

    for dataset, some in in_datasets(pair for pair in pairs if differ(pair)).items():
        shown = first_few(f"{pair.target.record.name} ({_sizes(pair)})" for pair in some)
        yield Finding(
            kind="aspect",
            level="note",
            dataset=dataset,
            text=f"{len(some)} pairs have images of different shapes: {shown}",
            fix="nothing to do if references are other images; else crop both images of a pair alike",
            records=tuple(pair.target.record for pair in some),
            names=tuple(pair.target.record.name for pair in some),
        )


def _sizes(pair: Pair) -> str:
    assert pair.reference is not None, "the shapes differ"
    (width, height), (other_width, other_height) = pair.target.record.size, pair.reference.record.size
    return f"{width}x{height}, reference {other_width}x{other_height}"


def _tiny(pairs: Iterable[Pair]) -> Iterator[Finding]:
    references: dict[str, dict[str, PlacedImage]] = defaultdict(dict)
    targets: dict[str, dict[str, PlacedImage]] = defaultdict(dict)
    for pair in pairs:
        if _enlarged(pair.target) > MOST_ENLARGED:
            targets[pair.dataset][identity(pair.target.record)] = pair.target
        if pair.reference is not None and _enlarged(pair.reference) > MOST_ENLARGED:
            references[pair.reference.record.dataset_id][identity(pair.reference.record)] = pair.reference
    for kind, found in (("tiny_reference", references), ("tiny_target", targets)):
        for dataset, images in found.items():
            yield _tiny_in(kind, dataset, list(images.values()))


def _tiny_in(kind: str, dataset: str, images: Sequence[PlacedImage]) -> Finding:
    worst = sorted(images, key=_enlarged, reverse=True)
    shown = first_few(f"{one.record.name} ({one.record.width}x{one.record.height})" for one in worst)
    return Finding(
        kind=kind,
        level="note",
        dataset=dataset,
        text=f"{len(worst)} images are enlarged by more than {MOST_ENLARGED:g} to be encoded, and so blurred: {shown}",
        fix="use larger files, lower resolution, or set minimum_image_size to leave them out",
        records=tuple(one.record for one in worst),
        names=tuple(one.record.name for one in worst),
    )


def _enlarged(image: PlacedImage) -> float:
    return max(image.geometry.resize[0] / image.record.width, image.geometry.resize[1] / image.record.height)


def _described(pairs: Iterable[Pair]) -> Iterator[Finding]:
    edits = (pair for pair in pairs if pair.reference is not None)
    for dataset, some in _by_caption(edits, lambda captions: [one for one in captions if describes(one)]).items():
        yield _of_captions(
            "caption_describes",
            "hint",
            dataset,
            some,
            "captions seem to describe an image, though the pairs are edits",
            "write what to change, such as `make the sky red`, if the model is an edit model",
        )


def _too_long(pairs: Iterable[Pair], long_captions: LongCaptions) -> Iterator[Finding]:
    for dataset, some in _by_caption(pairs, long_captions).items():
        yield _of_captions(
            "caption_too_long",
            "note",
            dataset,
            some,
            "captions are longer than the text encoder reads, and are cut",
            "shorten them; what comes last is not learnt",
        )


def _by_caption(
    pairs: Iterable[Pair], choose: Callable[[Sequence[str]], Sequence[str]]
) -> dict[str, dict[str, ImageRecord]]:
    """Return the chosen captions of each dataset, with one image that has it."""
    owners: dict[str, dict[str, ImageRecord]] = defaultdict(dict)
    for pair in pairs:
        for caption in pair.captions:
            owners[pair.dataset].setdefault(caption, pair.target.record)
    chosen: dict[str, dict[str, ImageRecord]] = {}
    for dataset, captions in owners.items():
        every = iter(captions)
        found: dict[str, ImageRecord] = {}
        while some := list(islice(every, CAPTIONS_AT_ONCE)):
            found.update((caption, captions[caption]) for caption in choose(some))
        if found:
            chosen[dataset] = found
    return chosen


def _of_captions(
    kind: str, level: Level, dataset: str, found: Mapping[str, ImageRecord], what: str, fix: str
) -> Finding:
    shown = first_few(f'{record.name} "{caption[:40]}"' for caption, record in found.items())
    return Finding(
        kind=kind,
        level=level,
        dataset=dataset,
        text=f"{len(found)} {what}: {shown}",
        fix=fix,
        records=tuple(found.values()),
        names=tuple(record.name for record in found.values()),
    )
