"""What is wrong, or odd, with all pairs of a target set; told together before any weight is loaded.

Problems stop the run, notes do not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from difftrain.config.schema import DatasetConfig
from difftrain.data.files.near_captions import near_captions
from difftrain.data.samples.matching import Matching
from difftrain.data.scanning.scan import Scan
from difftrain.errors import DataError, first_few
from difftrain.types import ImageRecord, Sample, Size


@dataclass
class Findings:
    """Collected over all datasets."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused_references: dict[str, dict[str, ImageRecord]] = field(default_factory=dict)
    """By reference set: images that belong to no target image of any target set that was matched so far."""

    def raise_problems(self) -> None:
        """Stop with everything that was found, if anything.

        Raises:
            DataError: With all problems.
        """
        if self.problems:
            raise DataError(*self.problems)


def audit_matching(
    findings: Findings, *, targets: str, references: str, total: int, matching: Matching, skip_missing: bool
) -> None:
    """Missing and ambiguous references of a target set; :func:`audit_unused_references` tells those that belong to
    nothing.

    Args:
        findings: Added to.
        targets: Id of the target set.
        references: Id of the reference set.
        total: Target images that are used.
        matching: What :func:`difftrain.data.samples.matching.match` found.
        skip_missing: ``on_missing: skip``.
    """
    where = f"dataset {targets!r}"
    if matching.missing:
        names = first_few(record.name for record in matching.missing)
        text = f"{where}: {len(matching.missing)} of {total} images have no reference in {references!r}: {names}"
        if skip_missing:
            findings.notes.append(f"{text}; left out (on_missing: skip)")
        else:
            findings.problems.append(f"{text}\nhint: {_missing_hint(matching)}")
    if matching.ambiguous:
        pairs = first_few(
            f"{record.name} (could be {' or '.join(candidate.name for candidate in candidates)})"
            for record, candidates in matching.ambiguous
        )
        findings.problems.append(
            f"{where}: {len(matching.ambiguous)} of {total} images have ambiguous references in {references!r}: "
            f"{pairs}\n"
            "hint: keep one file a stem and folder, or give a pair's two files the same extension"
        )
    before = findings.unused_references.get(references)
    findings.unused_references[references] = {
        record.image.key: record for record in matching.unused if before is None or record.image.key in before
    }


def audit_rows(findings: Findings, *, dataset: str, total: int, missing: Sequence[ImageRecord], skip: bool) -> None:
    """Images without a reference in a target set whose other images bring theirs."""
    if not missing:
        return
    names = first_few(record.name for record in missing)
    text = f"dataset {dataset!r}: {len(missing)} of {total} images have no reference in their row: {names}"
    if skip:
        findings.notes.append(f"{text}; left out (on_missing: skip)")
    else:
        findings.problems.append(f'{text}\nhint: add the references to the data source, or set "on_missing": "skip"')


def audit_unused_references(findings: Findings) -> None:
    """References that belong to nothing, once every target set is matched: several may share one reference set."""
    for references, unused_references in findings.unused_references.items():
        if unused_references:
            names = first_few(record.name for record in unused_references.values())
            findings.notes.append(
                f"dataset {references!r}: {len(unused_references)} references have no target image: {names}"
            )


def _missing_hint(matching: Matching) -> str:
    """Names that differ in upper and lower case only are told, since they look alike."""
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
    findings: Findings, *, targets: str, references: str, total: int, misfits: Sequence[str], one_size: bool
) -> None:
    """References that the pairing refused, with its messages, or that the flavour cannot take in their size."""
    if misfits:
        kind = "reference_strict" if one_size else "reference_loose"
        conjunction = "and" if one_size else "or"
        findings.problems.append(
            f"dataset {targets!r}: {len(misfits)} of {total} references in {references!r} do not fit: "
            + "; ".join(misfits[:3])
            + ("; ..." if len(misfits) > 3 else "")
            + f'\nhint: crop both images of a pair alike, {conjunction} use "conditioning_type": "{kind}"'
        )


def audit_uncaptioned(
    findings: Findings,
    *,
    dataset: str,
    total: int,
    records: Sequence[ImageRecord],
    others: Sequence[str],
    captioned_by_source: bool = False,
) -> None:
    """Samples that get no caption from anywhere.

    Args:
        others: Files of the data set that are no images: some may have been meant as captions.
        captioned_by_source: Whether the other captions are the data source's own, so that files play no part.
    """
    if records:
        names = first_few(record.name for record in records)
        remedy = "give each one in the data source" if captioned_by_source else "add a caption file to each"
        advice = (None if captioned_by_source else near_captions(records, others)) or (
            f"{remedy} (an empty {'text' if captioned_by_source else 'file'} is an empty caption), "
            'or set "caption_strategy": null to train without captions'
        )
        findings.problems.append(
            f"dataset {dataset!r}: {len(records)} of {total} images have no caption: {names}\nhint: {advice}"
        )


def audit_nothing_left(findings: Findings, config: DatasetConfig, left_out: Mapping[str, int]) -> None:
    """A target set of which no image becomes a sample."""
    reasons = []
    for reason, count in left_out.items():
        value = getattr(config, reason, None)
        reasons.append(f"{count} by {reason}" + ("" if value is None else f" = {value:g}"))
    findings.problems.append(
        f"dataset {config.id!r}: no samples are left; left out: {', '.join(reasons)}\n"
        'hint: change these options, or set "disabled": true on this dataset'
    )


def audit_contents(findings: Findings, dataset: str, scan: Scan) -> None:
    """Images that a dataset has more than once."""
    first: dict[str, ImageRecord] = {}
    doubles: list[str] = []
    for record in scan.records:
        earlier = first.setdefault(record.content_hash, record)
        if earlier is not record:
            doubles.append(f"{record.name} = {earlier.name}")
    if doubles:
        findings.notes.append(f"dataset {dataset!r}: {len(doubles)} images are duplicates: {first_few(doubles)}")


def audit_empty_captions(findings: Findings, samples: Iterable[Sample]) -> None:
    """Samples of which a draw may have no words."""
    empty: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        drawn = (caption for choice in sample.choices for caption in choice.captions or sample.captions)
        if not all(drawn):
            empty[sample.dataset_id].append(sample.target.record.name)
    for dataset, names in empty.items():
        findings.notes.append(f"dataset {dataset!r}: {len(names)} images have an empty caption: {first_few(names)}")


def audit_unedited(findings: Findings, dataset: DatasetConfig, samples: Sequence[Sample]) -> None:
    """References of one target set that are its target images, by content: each its own, or that of another pair.

    A reference set of which every image is its own target image is surely a mistake: one folder named twice, say.
    """
    targets = {sample.target.record.content_hash: sample.target.record for sample in samples}
    totals: Counter[str] = Counter()
    copies: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        own = sample.target.record.content_hash
        for reference in (placed.record for choice in sample.choices for placed in choice.references):
            totals[reference.dataset_id] += 1
            if reference.content_hash == own:
                copies[reference.dataset_id].append(reference.name)
            elif reference.content_hash in targets:
                others[reference.dataset_id].append(f"{reference.name} = {targets[reference.content_hash].name}")
    for references, names in copies.items():
        all_of_them = len(names) == totals[references]
        remedy = (
            "give each row its unedited image as the reference"
            if references == dataset.id
            else f"name the folder of the unedited images as instance_data_dir of {references!r}"
        )
        if all_of_them and not dataset.allow_identical_references:
            findings.problems.append(
                f"dataset {dataset.id!r}: all {len(names)} references in {references!r} are the target images "
                f"themselves, so nothing would be learnt but to copy: {first_few(names)}\n"
                f"hint: {remedy}, or set "
                '"allow_identical_references": true on the target set to teach that nothing changes'
            )
        else:
            findings.notes.append(
                f"dataset {dataset.id!r}: {len(names)} of {totals[references]} references in {references!r} are the "
                f"target images themselves, so nothing is edited: {first_few(names)}"
            )
    for references, names in others.items():
        findings.notes.append(
            f"dataset {dataset.id!r}: {len(names)} of {totals[references]} references in {references!r} are target "
            f"images of other pairs: {first_few(names)}"
        )


def audit_held_out(findings: Findings, *, trained: Iterable[Sample], held_out: Iterable[Sample]) -> None:
    """Held-out images that are trained on in another set: what they show is then no held-out result."""
    known: dict[str, Sample] = {}
    for sample in trained:
        known.setdefault(sample.target.record.content_hash, sample)
    counts: Counter[str] = Counter()
    leaks: dict[str, list[str]] = defaultdict(list)
    for sample in held_out:
        record = sample.target.record
        counts[sample.dataset_id] += 1
        if twin := known.get(record.content_hash):
            leaks[sample.dataset_id].append(f"{record.name} = {twin.dataset_id}/{twin.target.record.name}")
    for dataset, names in leaks.items():
        findings.notes.append(
            f"dataset {dataset!r}: {len(names)} of {counts[dataset]} held-out images are trained on too, so they "
            f"show nothing about unseen images: {first_few(names)}"
        )


def check_counts(samples: Iterable[Sample], most: int, *, flavour: str) -> None:
    """Make sure that no sample has more references at once than the model can take.

    Those of reference sets and generators are counted with the config; only the images themselves tell how many their
    rows bring.

    Args:
        samples: Those that are trained on or measured.
        most: As :attr:`~difftrain.contracts.ModelFlavour.max_references`.
        flavour: Whose limit it is.

    Raises:
        DataError: Naming the images of each dataset.
    """
    totals: Counter[str] = Counter()
    crowded: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        totals[sample.dataset_id] += 1
        count = max(len(choice.references) for choice in sample.choices)
        if count > most:
            crowded[sample.dataset_id].append(f"{sample.target.record.name} ({count})")
    problems = [
        f"dataset {dataset_id!r}: {len(names)} of {totals[dataset_id]} images have more references than flavour "
        f"{flavour!r} can take, {most}: {first_few(names)}\n"
        "hint: take references out of their rows, or set another model_flavour"
        for dataset_id, names in crowded.items()
    ]
    if problems:
        raise DataError(*problems)


def check_areas(samples: Iterable[Sample], most: int, *, flavour: str) -> None:
    """Make sure that no image is encoded larger than the model can take.

    Args:
        samples: Those that are trained on or measured.
        most: Pixels of the largest image, as :attr:`~difftrain.contracts.ModelFlavour.max_pixels`.
        flavour: Whose limit it is.

    Raises:
        DataError: Naming the images of each dataset.
    """
    images: dict[str, dict[str, Size]] = defaultdict(dict)
    for sample in samples:
        for image in (sample.target, *(image for choice in sample.choices for image in choice.references)):
            images[image.record.dataset_id][image.record.name] = image.geometry.bucket
    problems = []
    for dataset_id, sizes in images.items():
        large = {name: (width, height) for name, (width, height) in sizes.items() if width * height > most}
        if large:
            names = first_few(f"{name} ({width}x{height})" for name, (width, height) in large.items())
            problems.append(
                f"dataset {dataset_id!r}: {len(large)} of {len(sizes)} images would be encoded larger than flavour "
                f"{flavour!r} can take, {most:,} pixels: {names}\n"
                "hint: lower its resolution, or that of the edits where references follow them"
            )
    if problems:
        raise DataError(*problems)
