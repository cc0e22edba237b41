"""The samples of one target set: references matched or planned, placed, captioned and audited."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from difftrain.contracts import Pairing
from difftrain.data.buckets import assign_bucket, focused
from difftrain.data.entries.data_plan import DataPlan, DatasetPlan
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.samples.audit import Misfit, audit_matching, audit_misfits, audit_rows, audit_uncaptioned
from difftrain.data.samples.crop_focus import CropFocus, Images
from difftrain.data.samples.findings import Findings
from difftrain.data.samples.made_images import make_missing, planned_records
from difftrain.data.samples.matching import match
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.scanning.scan import Scan
from difftrain.data.seeding import derive_seed
from difftrain.errors import PairingError
from difftrain.types import Geometry, ImageRecord, Phase, PlacedImage, ReferenceChoice, Reporter, Sample, Size


@dataclass(frozen=True, kw_only=True)
class _ReferenceSet:
    """The images that condition each target together: from a reference set, a generator, or the image's own row."""

    id: str
    pairing: Pairing
    rules_of: DatasetPlan
    by_target: Mapping[str, Images]
    """By the target image's key in its source."""

    def of(self, target: ImageRecord) -> tuple[ImageRecord, ...]:
        found = self.by_target[target.image.key]
        return found if isinstance(found, tuple) else (found,)


class TargetSet:
    """Builds the samples of one target set."""

    def __init__(self, plan: DataPlan, dataset: DatasetPlan, scans: Mapping[str, Scan], findings: Findings) -> None:
        self.dataset = dataset
        self.left_out: Counter[str] = Counter(scans[dataset.id].left_out)
        self._plan = plan
        self._scans = scans
        self._findings = findings
        self._references: list[_ReferenceSet] = []
        self._unreadable_captions = frozenset[str]().union(
            *(scans[name].unreadable_captions for name in (dataset.id, *dataset.references))
        )
        self._sized = _geometry_cache(dataset)
        self.records = scans[dataset.id].records
        """Images that become samples; those without a reference are removed as reference sets are matched."""

    def gather_references(self, index: ImageIndex, reporter: Reporter) -> None:
        """Take the rows' own references, match the reference sets, find what to crop, plan the generators' images."""
        if self._scans[self.dataset.id].references:
            self._take_rows()
        for reference_id in self.dataset.references:
            self._match(self._plan.by_id(reference_id))
        self.records = self._limited(self.records)
        self._find_focus(CropFocus(index=index, reporter=reporter, findings=self._findings))
        for generator in self.dataset.generators:
            planned = planned_records(generator, self.records)
            by_target = {record.image.key: made for record, made in zip(self.records, planned, strict=True)}
            self._references.append(
                _ReferenceSet(id=generator.id, pairing=generator.pairing, rules_of=self.dataset, by_target=by_target)
            )

    def make_images(self, index: ImageIndex, reporter: Reporter) -> int:
        """Run the generators, last because that takes longest; return the number of images made."""
        written = 0
        for generator in self.dataset.generators:
            result = make_missing(generator, self.records, index, reporter)
            written += result.written
            for note in result.notes:
                self._findings.note("generator", "", note)
            for problem in result.problems:
                self._findings.problem("generator", "", problem)
        return written

    def samples(self, phase: Phase) -> list[Sample]:
        """Return one sample for each target image, in the order of the scan."""
        samples: list[Sample] = []
        uncaptioned: list[ImageRecord] = []
        misfits: dict[str, list[Misfit]] = {reference_set.id: [] for reference_set in self._references}
        for record in self.records:
            phase.advance(item=record.key)
            geometry = self._sized(record, self._plan.seed)
            target = PlacedImage(record=record, geometry=geometry)
            placed = [self._place_all(reference_set, target, misfits) for reference_set in self._references]
            if None in placed:
                continue
            choices = self._choices([images for images in placed if images is not None])
            captions = _own_captions(record, choices, may_be_empty=self.dataset.captions is None)
            if captions is None:
                if self._unreadable_captions.isdisjoint([record.image.place, *_reference_places(choices)]):
                    uncaptioned.append(record)
                continue
            samples.append(Sample(dataset_id=self.dataset.id, target=target, captions=captions, choices=choices))
        self._audit(misfits, uncaptioned)
        return samples

    def _audit(self, misfits: Mapping[str, Sequence[Misfit]], uncaptioned: Sequence[ImageRecord]) -> None:
        total = len(self.records)
        for reference_id, messages in misfits.items():
            audit_misfits(
                self._findings,
                targets=self.dataset.id,
                references=reference_id,
                total=total,
                misfits=messages,
                one_size=self._plan.references_fit_target,
            )
        scan = self._scans[self.dataset.id]
        audit_uncaptioned(
            self._findings,
            dataset=self.dataset.id,
            total=total,
            records=uncaptioned,
            others=scan.others if isinstance(self.dataset.captions, TextfileCaptions) else (),
            remedy=_remedy(scan, self.dataset),
        )

    def _limited(self, records: list[ImageRecord]) -> list[ImageRecord]:
        """Return at most ``max_num_samples``, drawn by name, so that a new file changes at most one of the others."""
        limit = self.dataset.config.max_num_samples
        if limit is None or len(records) <= limit:
            return records
        seed = self._plan.seed
        order = sorted(records, key=lambda record: derive_seed(seed, "max_num_samples", record.key, _file_name(record)))
        kept = {record.image.key for record in order[:limit]}
        self.left_out["max_num_samples"] += len(records) - limit
        return [record for record in records if record.image.key in kept]

    def _find_focus(self, find: CropFocus) -> None:
        """Find what crops are centred on, in targets and in those references that are cropped by their own rules."""
        self.records = find.on(self.dataset, self.records)
        for place, one in enumerate(self._references):
            if one.pairing.crops_by_own_rules:
                used = {record.image.key: one.by_target[record.image.key] for record in self.records}
                self._references[place] = replace(one, by_target=find.on_references(one.rules_of, used))

    def _take_rows(self) -> None:
        """Take the references that the images bring; if some bring any, all must."""
        scan, pairing = self._scans[self.dataset.id], self.dataset.row_pairing
        if pairing is None:
            text = "its images bring references, but nothing says how these follow them"
            self._findings.problem("no_pairing", self.dataset.id, text, fix="set conditioning_type")
            return
        missing = [record for record in scan.records if not scan.references[record.image.key]]
        skip = self.dataset.config.on_missing == "skip"
        audit_rows(self._findings, dataset=self.dataset.id, total=len(scan.records), missing=missing, skip=skip)
        if skip and missing:
            self.left_out["on_missing"] += len(missing)
        self.records = [record for record in self.records if scan.references[record.image.key]]
        self._references.append(
            _ReferenceSet(id=self.dataset.id, pairing=pairing, rules_of=self.dataset, by_target=scan.references)
        )

    def _match(self, references: DatasetPlan) -> None:
        """Match one reference set. What a limit or filter leaves out takes its partner along; nothing is missing."""
        own_scan, other_scan = self._scans[self.dataset.id], self._scans[references.id]
        assert references.pairing is not None, "conditioning_data names reference sets only"
        # Match all images, not only those left by earlier reference sets, so that every missing file is reported.
        everyone = match(own_scan.records, other_scan.records)
        everyone.unused = [record for record in everyone.unused if record.key not in own_scan.left_out_keys]
        limited = [record for record in everyone.missing if record.key in other_scan.left_out_keys]
        everyone.missing = [record for record in everyone.missing if record.key not in other_scan.left_out_keys]
        skip = self.dataset.config.on_missing == "skip"
        audit_matching(
            self._findings,
            targets=self.dataset.id,
            references=references.id,
            total=len(own_scan.records),
            matching=everyone,
            skip_missing=skip,
        )
        if limited:
            self.left_out["limit or filter of the reference"] += len(limited)
            why = ", ".join(other_scan.left_out) or "it cannot be read"
            self._findings.note(
                "left_out",
                self.dataset.id,
                f"{len(limited)} images are left out because {references.id!r} leaves out their reference ({why})",
                records=limited,
            )
        if skip:
            remaining = {record.image.key for record in self.records}
            self.left_out["on_missing"] += sum(record.image.key in remaining for record in everyone.missing)
        self.records = [record for record in self.records if record.image.key in everyone.found]
        self._references.append(
            _ReferenceSet(id=references.id, pairing=references.pairing, rules_of=references, by_target=everyone.found)
        )

    def _place_all(
        self, reference_set: _ReferenceSet, target: PlacedImage, misfits: Mapping[str, list[Misfit]]
    ) -> tuple[PlacedImage, ...] | None:
        """Return the images that condition a target together; None if one of them does not fit."""
        references = reference_set.of(target.record)
        if len(references) == 1:  # as nearly all of very many have
            only = self._place(references[0], reference_set, target, misfits)
            return None if only is None else (only,)
        placed = [self._place(one, reference_set, target, misfits) for one in references]
        fitting = tuple(image for image in placed if image is not None)
        return fitting if len(fitting) == len(placed) else None

    def _place(
        self,
        reference: ImageRecord,
        reference_set: _ReferenceSet,
        target: PlacedImage,
        misfits: Mapping[str, list[Misfit]],
    ) -> PlacedImage | None:
        try:
            geometry = reference_set.pairing.place(
                target=target.record,
                target_geometry=target.geometry,
                reference=reference,
                own_rules=focused(reference_set.rules_of.rules, reference.focus),
            )
        except PairingError as error:
            misfits[reference_set.id].append((target.record, str(error)))
            return None
        if self._plan.references_fit_target and geometry.bucket != target.geometry.bucket:
            (width, height), (own_width, own_height) = geometry.bucket, target.geometry.bucket
            text = (
                f"{reference.key} would be encoded at {width}x{height}, but its target image at "
                f"{own_width}x{own_height}"
            )
            misfits[reference_set.id].append((target.record, text))
            return None
        return PlacedImage(record=reference, geometry=geometry)

    def _choices(self, placed: Sequence[tuple[PlacedImage, ...]]) -> tuple[ReferenceChoice, ...]:
        """Return all reference sets as one choice, or each as a choice of which a visit draws one."""
        if not placed:
            return (ReferenceChoice(references=()),)
        if self._plan.combined and len(placed) > 1:
            return (ReferenceChoice(references=tuple(image for images in placed for image in images)),)
        return tuple(
            ReferenceChoice(references=images, captions=images[0].record.captions or None) for images in placed
        )


def _remedy(scan: Scan, dataset: DatasetPlan) -> str:
    if scan.captioned_by_source or dataset.captions is None:
        return "give each one in the data source (an empty text is an empty caption)"
    return dataset.captions.remedy


def _reference_places(choices: Sequence[ReferenceChoice]) -> list[str]:
    return [placed.record.image.place for choice in choices for placed in choice.references]


def _file_name(record: ImageRecord) -> str:
    return record.image.key.rpartition("/")[2]


def _own_captions(
    record: ImageRecord, choices: Sequence[ReferenceChoice], *, may_be_empty: bool
) -> tuple[str, ...] | None:
    """Return the target's captions, else those of its references; None if some draw would find no caption."""
    if record.captions is not None:
        return record.captions
    if all(choice.captions is not None for choice in choices):
        return tuple(dict.fromkeys(caption for choice in choices for caption in choice.captions or ()))
    return ("",) if may_be_empty else None


def _geometry_cache(dataset: DatasetPlan) -> Callable[[ImageRecord, int], Geometry]:
    """Cache geometries by size, since many images share one; other crops depend on the image's content instead."""
    rules = dataset.rules
    known: dict[Size, Geometry] = {}

    def geometry(record: ImageRecord, seed: int) -> Geometry:
        if rules.draws:
            draw = random.Random(derive_seed(seed, "crop", record.content_hash))
            return assign_bucket(record.size, focused(rules, record.focus), draw=draw)
        if record.focus is not None:
            return assign_bucket(record.size, focused(rules, record.focus))
        if record.size not in known:
            known[record.size] = assign_bucket(record.size, rules)
        return known[record.size]

    return geometry
