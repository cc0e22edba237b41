"""Every kind of finding, by its stable name, worst first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from difftrain.types import Finding

KINDS: Mapping[str, str] = {
    "no_source": "data that cannot be found",
    "unusable": "items that cannot be used",
    "unreadable": "images that cannot be read",
    "undecodable": "images that cannot be decoded",
    "unmatched": "targets without a reference",
    "ambiguous": "targets with several possible references",
    "misfit": "references that do not fit",
    "no_pairing": "references without a pairing",
    "caption_missing": "missing captions",
    "unreadable_caption": "captions that cannot be read",
    "nothing_left": "datasets without samples",
    "generator": "generators",
    "no_edit": "pairs without an edit",
    "shifted": "shifted pairs",
    "zoomed": "zoomed pairs",
    "near_equal": "pairs with hardly an edit",
    "held_out_leak": "held-out images that are trained on",
    "reference_is_target": "references that are targets of other pairs",
    "duplicate": "images that are there twice",
    "same_pixels": "images with the same pixels",
    "aspect": "pairs of different shapes",
    "tiny_reference": "references that are enlarged much",
    "tiny_target": "targets that are enlarged much",
    "caption_too_long": "captions that are cut",
    "caption_empty": "empty captions",
    "caption_describes": "captions that describe",
    "unused_reference": "references without a target",
    "left_out": "images that are left out",
    "other_size": "sizes that differ from the data source",
    "frames": "images with several frames",
    "several_captions": "images with several captions",
    "listing": "other files",
    "index": "the index of files",
}
"""Titles, by kind."""
NEED_PIXELS = ("no_edit", "shifted", "zoomed", "near_equal", "same_pixels", "undecodable")
"""Kinds that only comparing pixels finds; of ``no_edit``, files with equal bytes are found without."""
_LEVELS = ("problem", "note", "hint")


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings in the order in which they are worth a look."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda one: (_LEVELS.index(one.level), order[one.kind], -one.count, one.dataset))
