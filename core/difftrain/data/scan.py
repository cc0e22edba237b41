"""One dataset's images and captions, as records; pixels are not loaded."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difftrain.data.buckets import SizeLimits, broken_limit
from difftrain.data.file_facts import FileFacts
from difftrain.data.index import ImageIndex
from difftrain.data.other_files import note_listing
from difftrain.data.plan import DatasetPlan
from difftrain.errors import first_few
from difftrain.types import ImageRecord, Reporter


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one dataset has."""

    records: list[ImageRecord]
    """Images that are used, sorted by their path below the root."""
    left_out: dict[str, int]
    """How many images each size limit leaves out, by the option's name."""
    left_out_keys: frozenset[str]
    """Keys of images left out by a size limit or unreadable: their partners are not said to be missing one."""
    listed: int
    """Images that the source has."""
    unreadable_captions: frozenset[Path]
    """Images whose captions could not be read: these are not said to have none."""
    others: Sequence[str]
    """Files beside the images, as paths below the root: where a missing caption may be."""
    problems: tuple[str, ...]
    """Unreadable pictures, folders and captions; the run cannot start with any."""
    notes: tuple[str, ...]
    """What was left out and what is odd."""


def scan(plan: DatasetPlan, index: ImageIndex, reporter: Reporter, *, written: Mapping[str, Path]) -> Scan:
    """List, examine and caption the images of one dataset.

    Args:
        written: Folders that runs write, by name; what lies there is no data.

    Raises:
        DataError: If the source does not exist or has no images.
    """
    listing = plan.source.survey(written)
    listed = listing.images
    with reporter.phase(f"scan {plan.id}", len(listed)) as phase:
        facts = index.examine([path for _, path in listed], phase)
    named = [(_key(relative), path) for relative, path in listed]
    problems = [*_unusable(listing.unusable), *_unreadable(listed, facts)]
    notes = [*note_listing(listing), *_frames(listed, facts)]
    used, left_out, left_out_keys = _within_limits(plan, named, facts)
    captions: list[tuple[str, ...] | None] = [None] * len(used)
    complaints: dict[Path, str] = {}
    if plan.captions is not None:
        captions, complaints = index.captions(plan.captions, [named[position] for position in used])
        problems += _complaints(complaints.values())
        notes += _split(captions)
    records = [
        ImageRecord(
            dataset_id=plan.id,
            key=named[position][0],
            path=named[position][1],
            width=facts[position].width,
            height=facts[position].height,
            content_hash=facts[position].sha256,
            captions=caption,
        )
        for position, caption in zip(used, captions, strict=True)
    ]
    return Scan(
        records=records,
        left_out=left_out,
        left_out_keys=left_out_keys,
        listed=len(listed),
        unreadable_captions=frozenset(complaints),
        others=listing.others,
        problems=tuple(f"dataset {plan.id!r}: {problem}" for problem in problems),
        notes=tuple(f"dataset {plan.id!r}: {note}" for note in notes),
    )


def _key(relative: str) -> str:
    """Path without extension; composed, since macOS writes accented names in another form than Linux.

    Bytes that are no UTF-8 are spelt out, so that a key is a text that can be hashed and stored.
    """
    key = relative.rpartition(".")[0]
    if key.isascii():
        return key
    spelt = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", spelt)


def _unusable(unusable: Sequence[str]) -> list[str]:
    if not unusable:
        return []
    return [
        f"{len(unusable)} files and folders cannot be used: {first_few(unusable)}\n"
        "hint: mend them, or move them out of the folder"
    ]


def _unreadable(listed: Sequence[tuple[str, Path]], facts: Sequence[FileFacts]) -> list[str]:
    broken = [(relative, one) for (relative, _), one in zip(listed, facts, strict=True) if one.error is not None]
    if not broken:
        return []
    names = first_few(f"{relative} ({one.error})" for relative, one in broken)
    refused = any(one.refused for _, one in broken)
    advice = "make these files readable" if refused else "replace these files"
    return [
        f"{len(broken)} of {len(listed)} pictures cannot be read: {names}\n"
        f"hint: {advice}, or move them out of the folder"
    ]


def _frames(listed: Sequence[tuple[str, Path]], facts: Sequence[FileFacts]) -> list[str]:
    names = [relative for (relative, _), one in zip(listed, facts, strict=True) if one.is_animated]
    if not names:
        return []
    return [f"{len(names)} pictures have several frames, of which the first is used: {first_few(names)}"]


def _complaints(complaints: Collection[str]) -> list[str]:
    """All captions that cannot be read, with the remedy of the first."""
    if not complaints:
        return []
    texts = [complaint.partition("\nhint: ")[0] for complaint in complaints]
    hint = next((hint for complaint in complaints if (hint := complaint.partition("\n")[2])), "")
    return [f"{len(texts)} captions cannot be read: {first_few(texts)}" + (f"\n{hint}" if hint else "")]


def _split(captions: Collection[tuple[str, ...] | None]) -> list[str]:
    count = sum(caption is not None and len(caption) > 1 for caption in captions)
    if not count:
        return []
    return [
        f"{count} images have several captions, one a line of their caption file: one of them is drawn at each visit"
    ]


def _within_limits(
    plan: DatasetPlan, named: Sequence[tuple[str, Path]], facts: Sequence[FileFacts]
) -> tuple[list[int], dict[str, int], frozenset[str]]:
    limits = SizeLimits(
        resolution_type=plan.rules.resolution_type,
        minimum_image_size=plan.config.minimum_image_size,
        minimum_aspect_ratio=plan.config.minimum_aspect_ratio,
        maximum_aspect_ratio=plan.config.maximum_aspect_ratio,
    )
    used: list[int] = []
    left_out: Counter[str] = Counter()
    keys: set[str] = set()
    for position, one in enumerate(facts):
        if one.error is not None:
            keys.add(named[position][0])
            continue
        broken = broken_limit((one.width, one.height), limits)
        if broken is None:
            used.append(position)
        else:
            left_out[broken] += 1
            keys.add(named[position][0])
    return used, dict(left_out), frozenset(keys)
