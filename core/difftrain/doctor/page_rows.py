"""The data of the page: what each row shows, as plain values. No HTML is made here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difftrain.doctor.compare import names_of
from difftrain.doctor.examine import Examined
from difftrain.doctor.kinds import KINDS
from difftrain.doctor.pairs import Pair, identity
from difftrain.types import Finding, PlacedImage

MOST_ROWS = 50_000
"""Rows of a page; a browser shows so many without delay. Pairs with findings come first."""
MOST_CHARACTERS = 1000
"""Of a caption."""
COLUMNS = (
    "dataset", "name", "size", "bucket", "crop", "thumbnail", "reference_dataset", "reference_name", "reference_size",
    "reference_bucket", "reference_crop", "reference_thumbnail", "captions", "kinds", "difference", "changed", "right",
    "down", "zoom",
)  # fmt: skip
"""Values of a row, in this order."""


def page_data(examined: Examined, thumbnails: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that the page shows.

    Args:
        thumbnails: Folder of the thumbnails; a row names only those that exist.
        facts: Texts about the whole data by their heading, such as counts of buckets.
    """
    kinds = list(KINDS)
    by_image: dict[str, set[int]] = defaultdict(set)
    for finding in examined.findings:
        for record in finding.records:
            by_image[identity(record)].add(kinds.index(finding.kind))
    found = [(pair, sorted(_kinds(pair, by_image))) for pair in examined.pairs]
    shown = sorted(found, key=lambda row: not row[1])[:MOST_ROWS] if len(found) > MOST_ROWS else found
    return {
        "kinds": [{"kind": kind, "title": title} for kind, title in KINDS.items()],
        "findings": [_finding(one) for one in examined.findings],
        "not_checked": [{"kinds": [KINDS[kind] for kind in one.kinds], "why": one.why} for one in examined.not_checked],
        "facts": dict(facts),
        "left_out": len(found) - len(shown),
        "columns": list(COLUMNS),
        "rows": [_row(pair, own, examined, thumbnails) for pair, own in shown],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    """Return it without its names: the rows have them."""
    return {
        "kind": finding.kind,
        "level": finding.level,
        "dataset": finding.dataset,
        "count": finding.count,
        "text": finding.text,
        "fix": finding.fix,
    }


def _kinds(pair: Pair, by_image: Mapping[str, set[int]]) -> set[int]:
    """Return the findings of both images; a kind of the reference's set is shown at every pair that has it."""
    own = set(by_image.get(identity(pair.target.record), ()))
    if pair.reference is not None:
        own |= by_image.get(identity(pair.reference.record), set())
    return own


def _row(pair: Pair, kinds: Sequence[int], examined: Examined, thumbnails: Path) -> list[Any]:
    measures = examined.facts.of(pair)
    numbers = (measures.difference, measures.changed, measures.right, measures.down, measures.zoom) if measures else ()
    captions = [caption[:MOST_CHARACTERS] for caption in pair.captions]
    return [
        *_image(pair.target, thumbnails),
        *(_image(pair.reference, thumbnails) if pair.reference is not None else [None] * 6),
        captions,
        list(kinds),
        *(numbers or [None] * 5),
    ]


def _image(placed: PlacedImage, thumbnails: Path) -> list[Any]:
    record, geometry = placed.record, placed.geometry
    (width, height), (left, top) = geometry.resize, geometry.crop
    crop = [left / width, top / height, geometry.bucket[0] / width, geometry.bucket[1] / height]
    folder, name = names_of(record)
    exists = (thumbnails / folder / name).exists()
    return [
        record.dataset_id,
        record.name,
        list(record.size),
        list(geometry.bucket),
        [round(part, 4) for part in crop],
        f"{folder}/{name}" if exists else None,
    ]
