"""Everything about the pairs of a run, found before anything is trained. Start with :func:`examine_pairs`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from difftrain.doctor import alignment
from difftrain.doctor.kinds import KINDS, NEED_PIXELS, worst_first
from difftrain.doctor.measures import MeasureStore
from difftrain.doctor.pairs import Pair, identity, lone, pairs_of
from difftrain.doctor.pixel_findings import pixel_findings
from difftrain.doctor.pixel_pass import Ahead, PixelFacts, compare_all, images_of, look_ahead
from difftrain.doctor.record_findings import LongCaptions, record_findings
from difftrain.types import Finding, ImageRecord, Reporter, Sample

FEW_PAIRS = 100
"""Pairs that are compared unasked; more are compared with ``--pixels``."""

Pixels = Literal["few", "all", "none"]
"""Whether to compare pixels: up to :data:`FEW_PAIRS` new pairs, all, or only what is known already."""


@dataclass(frozen=True, kw_only=True)
class NotChecked:
    """Kinds that were not looked for."""

    kinds: tuple[str, ...]
    why: str
    """With the way to have them checked."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What the pair doctor found."""

    pairs: Sequence[Pair]
    """Pairs of samples, then images that are in none because something is wrong with them."""
    facts: PixelFacts
    findings: Sequence[Finding]
    """Worst first; those of the audit too."""
    not_checked: Sequence[NotChecked]

    def as_json(self) -> dict[str, Any]:
        """Return findings and counts as plain JSON values; docs/pair-doctor.md explains the keys."""
        used = [pair for pair in self.pairs if pair.is_used]
        comparable = [pair for pair in used if pair.is_comparable]
        return {
            "findings": [self._finding_json(finding) for finding in self.findings],
            "not_checked": [{"kinds": list(one.kinds), "why": one.why} for one in self.not_checked],
            "pairs": {
                "total": sum(pair.reference is not None for pair in used),
                "without_reference": sum(pair.reference is None for pair in used),
                "comparable": len(comparable),
                "compared": sum(self.facts.of(pair) is not None for pair in comparable),
            },
        }

    def _finding_json(self, finding: Finding) -> dict[str, Any]:
        measured = []
        if finding.kind in ("shifted", "zoomed", "near_equal"):
            own = {identity(record) for record in finding.records}
            for pair in self.pairs:
                measures = self.facts.of(pair)
                if measures is not None and pair.reference is not None and identity(pair.target.record) in own:
                    numbers = {key: value for key, value in asdict(measures).items() if key != "aligned_by"}
                    names = {"target": pair.target.record.name, "reference": pair.reference.record.name}
                    measured.append(names | numbers)
        return {
            "kind": finding.kind,
            "title": KINDS[finding.kind],
            "level": finding.level,
            "dataset": finding.dataset,
            "count": finding.count,
            "text": finding.text,
            "fix": finding.fix,
            "names": list(finding.names),
            **({"measures": measured} if measured else {}),
        }


def examine_pairs(
    samples: Iterable[Sample],
    audited: Sequence[Finding],
    *,
    store_path: Path,
    reporter: Reporter,
    pixels: Pixels,
    long_captions: LongCaptions | None,
    thumbnails: Path | None = None,
) -> Examined:
    """Look at every pair.

    Args:
        samples: Complete samples.
        audited: What pairing them found.
        store_path: File that keeps what comparing pixels finds.
        long_captions: Finds captions that the text encoder cuts; None if its tokenizer is not there.
        thumbnails: Folder for thumbnails, for the page; None writes none.

    Raises:
        MachineError: If a thumbnail cannot be written.
    """
    pairs = list(pairs_of(samples))
    everything = [*pairs, *_lone(audited, pairs)]
    not_checked = _without_tools(long_captions)
    with MeasureStore(store_path) as store:
        ahead = look_ahead(everything if thumbnails is not None else pairs, store, thumbnails)
        if pixels == "all" or (pixels == "few" and len(ahead.tasks) <= FEW_PAIRS):
            facts = compare_all(ahead, store, reporter)
        else:
            facts = ahead.known
            not_checked = [*_not_compared(ahead), *not_checked]
        for note in store.notes:
            reporter.say(f"note: {note}")
    found = [*audited, *record_findings(pairs, long_captions), *pixel_findings(pairs, facts)]
    return Examined(pairs=everything, facts=facts, findings=worst_first(found), not_checked=not_checked)


def _lone(audited: Sequence[Finding], pairs: Sequence[Pair]) -> list[Pair]:
    shown = {identity(placed.record) for pair in pairs for placed in images_of(pair)}
    left: dict[str, ImageRecord] = {}
    for finding in audited:
        left.update((identity(record), record) for record in finding.records if identity(record) not in shown)
    return [lone(record) for record in left.values()]


def _without_tools(long_captions: LongCaptions | None) -> list[NotChecked]:
    missing = []
    if not alignment.can_estimate():
        missing.append(NotChecked(kinds=("shifted", "zoomed"), why=f"needs opencv: {alignment.EXTRA}"))
    if long_captions is None:
        why = "the tokenizer is not on this machine yet; the run says it when it encodes captions"
        missing.append(NotChecked(kinds=("caption_too_long",), why=why))
    return missing


def _not_compared(ahead: Ahead) -> list[NotChecked]:
    if not ahead.tasks:
        return []
    why = (
        f"the pixels of {len(ahead.tasks)} pairs are not compared; --pixels does it, in about {_minutes(ahead.seconds)}"
    )
    return [NotChecked(kinds=NEED_PIXELS, why=why)]


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
