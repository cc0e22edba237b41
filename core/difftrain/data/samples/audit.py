"""Problems and notes about the data, collected and reported together before any weight is loaded.

Problems stop the run, notes do not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from difftrain.config.schema import DatasetConfig
from difftrain.data.files.near_captions import near_captions
from difftrain.data.samples.findings import Findings
from difftrain.data.samples.matching import Matching
from difftrain.data.scanning.scan import Scan
from difftrain.errors import first_few
from difftrain.types import ImageRecord, Sample

Misfit = tuple[ImageRecord, str]
"""A target image, and why its reference does not fit."""


def audit_matching(
    findings: Findings, *, targets: str, references: str, total: int, matching: Matching, skip_missing: bool
) -> None:
    """Report missing and ambiguous references of a target set, and collect unused ones.

    Args:
        findings: Added to.
        targets: Id of the target set.
        references: Id of the reference set.
        total: Number of target images in use.
        matching: Result of :func:`difftrain.data.samples.matching.match`.
        skip_missing: ``on_missing: skip``.
    """
    if matching.missing:
        names = first_few(record.name for record in matching.missing)
        text = f"{len(matching.missing)} of {total} images have no reference in {references!r}: {names}"
        if skip_missing:
            findings.note("unmatched", targets, f"{text}; left out (on_missing: skip)", records=matching.missing)
        else:
            findings.problem("unmatched", targets, text, fix=_missing_hint(matching), records=matching.missing)
    if matching.ambiguous:
        pairs = first_few(
            f"{record.name} (could be {' or '.join(candidate.name for candidate in candidates)})"
            for record, candidates in matching.ambiguous
        )
        findings.problem(
            "ambiguous",
            targets,
            f"{len(matching.ambiguous)} of {total} images have ambiguous references in {references!r}: {pairs}",
            fix="keep one file a stem and folder, or give a pair's two files the same extension",
            records=(record for record, _ in matching.ambiguous),
        )
    before = findings.unused_references.get(references)
    findings.unused_references[references] = {
        record.image.key: record for record in matching.unused if before is None or record.image.key in before
    }


def audit_rows(findings: Findings, *, dataset: str, total: int, missing: Sequence[ImageRecord], skip: bool) -> None:
    """Report images whose row has no reference, though other rows of the set have one."""
    if not missing:
        return
    names = first_few(record.name for record in missing)
    text = f"{len(missing)} of {total} images have no reference in their row: {names}"
    if skip:
        findings.note("unmatched", dataset, f"{text}; left out (on_missing: skip)", records=missing)
    else:
        fix = 'add the references to the data source, or set "on_missing": "skip"'
        findings.problem("unmatched", dataset, text, fix=fix, records=missing)


def audit_unused_references(findings: Findings) -> None:
    """Note references without a target image, once all target sets that may share them are matched."""
    for references, unused_references in findings.unused_references.items():
        if unused_references:
            names = first_few(record.name for record in unused_references.values())
            findings.note(
                "unused_reference",
                references,
                f"{len(unused_references)} references have no target image: {names}",
                records=unused_references.values(),
            )


def _missing_hint(matching: Matching) -> str:
    """Point out names that differ only in upper and lower case, since they look alike."""
    unused = {record.key.casefold(): record for record in matching.unused}
    for record in matching.missing:
        alike = unused.get(record.key.casefold())
        if alike is not None:
            return f"names must be equal in upper and lower case: {record.name} and {alike.name}"
    return (
        'name each reference after its target image (same folder, same stem, any extension), or set "on_missing": '
        '"skip"'
    )


def audit_misfits(
    findings: Findings, *, targets: str, references: str, total: int, misfits: Sequence[Misfit], one_size: bool
) -> None:
    """Report references that the pairing refused, with its messages, or whose size the flavour cannot take."""
    if misfits:
        kind = "reference_strict" if one_size else "reference_loose"
        conjunction = "and" if one_size else "or"
        findings.problem(
            "misfit",
            targets,
            f"{len(misfits)} of {total} references in {references!r} do not fit: "
            + "; ".join(text for _, text in misfits[:3])
            + ("; ..." if len(misfits) > 3 else ""),
            fix=f'crop both images of a pair alike, {conjunction} use "conditioning_type": "{kind}"',
            records=(target for target, _ in misfits),
        )


def audit_uncaptioned(
    findings: Findings,
    *,
    dataset: str,
    total: int,
    records: Sequence[ImageRecord],
    others: Sequence[str],
    remedy: str,
) -> None:
    """Report samples without a caption.

    Args:
        others: Other files of the dataset; some may have been meant as captions. Empty where captions are no files
            beside images.
        remedy: What to do about it.
    """
    if records:
        names = first_few(record.name for record in records)
        advice = near_captions(records, others) or (
            f'{remedy}, or set "caption_strategy": null to train without captions'
        )
        text = f"{len(records)} of {total} images have no caption: {names}"
        findings.problem("caption_missing", dataset, text, fix=advice, records=records)


def audit_nothing_left(findings: Findings, config: DatasetConfig, left_out: Mapping[str, int]) -> None:
    """Report a target set that gives no samples."""
    reasons = []
    for reason, count in left_out.items():
        value = getattr(config, reason, None)
        reasons.append(f"{count} by {reason}" + ("" if value is None else f" = {value:g}"))
    findings.problem(
        "nothing_left",
        config.id,
        f"no samples are left; left out: {', '.join(reasons)}",
        fix='change these options, or set "disabled": true on this dataset',
    )


def audit_contents(findings: Findings, dataset: str, scan: Scan) -> None:
    """Note images that a dataset has more than once."""
    first: dict[str, ImageRecord] = {}
    doubles = [one for one in scan.records if first.setdefault(one.content_hash, one) is not one]
    if doubles:
        names = first_few(f"{record.name} = {first[record.content_hash].name}" for record in doubles)
        findings.note(
            "duplicate",
            dataset,
            f"{len(doubles)} images are duplicates: {names}",
            fix="remove them, or use repeats to show an image more often",
            records=doubles,
        )


def audit_empty_captions(findings: Findings, samples: Iterable[Sample]) -> None:
    """Note samples with an empty caption among those that may be drawn."""
    empty: dict[str, list[ImageRecord]] = defaultdict(list)
    for sample in samples:
        drawn = (caption for choice in sample.choices for caption in choice.captions or sample.captions)
        if not all(drawn):
            empty[sample.dataset_id].append(sample.target.record)
    for dataset, records in empty.items():
        names = first_few(record.name for record in records)
        findings.note(
            "caption_empty", dataset, f"{len(records)} images have an empty caption: {names}", records=records
        )


def audit_unedited(findings: Findings, dataset: DatasetConfig, samples: Sequence[Sample]) -> None:
    """Report references whose content is that of a target image: the pair's own, or another pair's.

    If every reference is its own target image, that is surely a mistake, such as one folder named twice.
    """
    targets = {sample.target.record.content_hash: sample.target.record for sample in samples}
    totals: Counter[str] = Counter()
    copies: dict[str, dict[str, ImageRecord]] = defaultdict(dict)
    others: dict[str, dict[str, ImageRecord]] = defaultdict(dict)
    for sample in samples:
        own = sample.target.record.content_hash
        for reference in (placed.record for choice in sample.choices for placed in choice.references):
            totals[reference.dataset_id] += 1
            if reference.content_hash == own:
                copies[reference.dataset_id][reference.name] = sample.target.record
            elif reference.content_hash in targets:
                shown = f"{reference.name} = {targets[reference.content_hash].name}"
                others[reference.dataset_id][shown] = sample.target.record
    for references, names in copies.items():
        all_of_them = len(names) == totals[references]
        remedy = (
            "give each row its unedited image as the reference"
            if references == dataset.id
            else f"name the folder of the unedited images as instance_data_dir of {references!r}"
        )
        if all_of_them and not dataset.allow_identical_references:
            findings.problem(
                "no_edit",
                dataset.id,
                f"all {len(names)} references in {references!r} are the target images themselves, so nothing would be "
                f"learnt but to copy: {first_few(names)}",
                fix=f'{remedy}, or set "allow_identical_references": true on the target set to teach that nothing '
                "changes",
                records=names.values(),
            )
        else:
            findings.note(
                "no_edit",
                dataset.id,
                f"{len(names)} of {totals[references]} references in {references!r} are the target images themselves, "
                f"so nothing is edited: {first_few(names)}",
                fix=f"{remedy}, or remove these pairs",
                records=names.values(),
            )
    for references, names in others.items():
        findings.note(
            "reference_is_target",
            dataset.id,
            f"{len(names)} of {totals[references]} references in {references!r} are target images of other pairs: "
            f"{first_few(names)}",
            records=names.values(),
        )


def audit_held_out(findings: Findings, *, trained: Iterable[Sample], held_out: Iterable[Sample]) -> None:
    """Note held-out images that another set trains on: their results say nothing about unseen images."""
    known: dict[str, Sample] = {}
    for sample in trained:
        known.setdefault(sample.target.record.content_hash, sample)
    counts: Counter[str] = Counter()
    leaks: dict[str, dict[str, ImageRecord]] = defaultdict(dict)
    for sample in held_out:
        record = sample.target.record
        counts[sample.dataset_id] += 1
        if twin := known.get(record.content_hash):
            leaks[sample.dataset_id][f"{record.name} = {twin.dataset_id}/{twin.target.record.name}"] = record
    for dataset, names in leaks.items():
        findings.note(
            "held_out_leak",
            dataset,
            f"{len(names)} of {counts[dataset]} held-out images are trained on too, so they show nothing about unseen "
            f"images: {first_few(names)}",
            records=names.values(),
        )
