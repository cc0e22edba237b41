"""One dataset's images and captions, as records; pixels are not loaded."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from difftrain.data.buckets import SizeLimits, broken_limit
from difftrain.data.file_facts import FileFacts
from difftrain.data.index import ImageIndex
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
    problems: tuple[str, ...]
    """Unreadable pictures and captions; the run cannot start with any."""


def scan(plan: DatasetPlan, index: ImageIndex, reporter: Reporter) -> Scan:
    """List, examine and caption the images of one dataset.

    Raises:
        DataError: If the source does not exist or has no images.
    """
    listed = _without_caches(list(plan.source.list_images()), plan)
    with reporter.phase(f"scan {plan.id}", len(listed)) as phase:
        facts = index.examine([path for _, path in listed], phase)
    named = [(_key(relative), path) for relative, path in listed]
    problems = _unreadable(plan.id, listed, facts)
    used, left_out, left_out_keys = _within_limits(plan, named, facts)
    captions: list[tuple[str, ...] | None] = [None] * len(used)
    complaints: dict[Path, str] = {}
    if plan.captions is not None:
        captions, complaints = index.captions(plan.captions, [named[position] for position in used])
        problems += _complaints(plan.id, complaints.values())
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
        problems=tuple(problems),
    )


def _key(relative: str) -> str:
    """Path without extension; composed, since macOS writes accented names in another form than Linux."""
    key = relative.rpartition(".")[0]
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def _without_caches(listed: list[tuple[str, Path]], plan: DatasetPlan) -> list[tuple[str, Path]]:
    """A folder of made pictures may lie below the dataset's root; its pictures are not edit images."""
    ours = [os.path.abspath(folder) for folder in (plan.latents_folder, *(made.folder for made in plan.generators))]  # noqa: PTH100
    prefixes = tuple(folder + os.sep for folder in ours)
    return [(relative, path) for relative, path in listed if not str(path).startswith(prefixes)]


def _unreadable(dataset_id: str, listed: Sequence[tuple[str, Path]], facts: Sequence[FileFacts]) -> list[str]:
    broken = [(relative, one.error) for (relative, _), one in zip(listed, facts, strict=True) if one.error is not None]
    if not broken:
        return []
    names = first_few(f"{relative} ({error})" for relative, error in broken)
    return [
        f"dataset {dataset_id!r}: {len(broken)} of {len(listed)} pictures cannot be read: {names}\n"
        "hint: replace these files, or move them out of the folder"
    ]


def _complaints(dataset_id: str, complaints: Collection[str]) -> list[str]:
    if not complaints:
        return []
    return [f"dataset {dataset_id!r}: {len(complaints)} captions cannot be read: {first_few(complaints)}"]


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
