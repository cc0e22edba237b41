"""Matches references to target images. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from difftrain.types import ImageRecord


@dataclass(kw_only=True)
class Matching:
    """The target images of one dataset and their references in one reference set."""

    found: dict[str, ImageRecord] = field(default_factory=dict)
    """By the target image's key in its source, which is unique there."""
    missing: list[ImageRecord] = field(default_factory=list)
    """Target images without a reference."""
    ambiguous: list[tuple[ImageRecord, tuple[ImageRecord, ...]]] = field(default_factory=list)
    """Target images with the references that could belong to them."""
    unused: list[ImageRecord] = field(default_factory=list)
    """References without a target image."""


def match(targets: Sequence[ImageRecord], references: Sequence[ImageRecord]) -> Matching:
    """Match by key: the whole path below the root without the extension, compared as a whole.

    If several images of one folder share a stem, those with the same extension belong together; whatever is
    left over is ambiguous.
    """
    references_by_key = _by_key(references)
    matching = Matching()
    for key, group in _by_key(targets).items():
        candidates = references_by_key.pop(key, [])
        if len(group) == 1 and len(candidates) == 1:
            matching.found[group[0].image.key] = candidates[0]
        else:
            _match_group(group, candidates, matching)
    matching.unused += [reference for rest in references_by_key.values() for reference in rest]
    return matching


def _by_key(records: Sequence[ImageRecord]) -> dict[str, list[ImageRecord]]:
    groups: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        groups[record.key].append(record)
    return groups


def _match_group(targets: list[ImageRecord], candidates: list[ImageRecord], matching: Matching) -> None:
    """Match targets and references of one key by extension."""
    free = list(candidates)
    left_over: list[ImageRecord] = []
    for target in targets:
        same = [reference for reference in candidates if _extension(reference) == _extension(target)]
        if len(same) == 1:
            matching.found[target.image.key] = same[0]
            free.remove(same[0])
        else:
            left_over.append(target)
    if not free:
        matching.missing += left_over
    elif not left_over:
        matching.unused += free
    else:
        matching.ambiguous += [(target, tuple(free)) for target in left_over]


def _extension(record: ImageRecord) -> str:
    return record.image.extension.lower()
