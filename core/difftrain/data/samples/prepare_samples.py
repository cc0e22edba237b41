"""From dataset entries to samples: scan, make, pair, place, audit. Before any weight is loaded, without torch.

Start with :func:`prepare_samples`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from difftrain.data.entries.data_plan import DataPlan
from difftrain.data.packed.packed_samples import PackedSamples
from difftrain.data.packed.sample_table import SampleTable
from difftrain.data.samples.audit import (
    audit_empty_captions,
    audit_held_out,
    audit_nothing_left,
    audit_unedited,
    audit_unused_references,
)
from difftrain.data.samples.findings import Findings
from difftrain.data.samples.made_images import room_needed
from difftrain.data.samples.remembered import DataMemory, Remembered
from difftrain.data.samples.scan_sets import scan_sets
from difftrain.data.samples.target_set import TargetSet
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.scanning.scan import Scan
from difftrain.errors import MachineError
from difftrain.machine.disk import Need
from difftrain.machine.folders import check_folder
from difftrain.machine.garbage import give_back_memory, paused_garbage_collection
from difftrain.types import Finding, Reporter, Sample, Size


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The samples of a run, each once; repeats are not expanded."""

    samples: Sequence[Sample]
    """Samples to train on."""
    held_out: Sequence[Sample] = ()
    """Samples that no training batch may contain; they are only measured and drawn in validations."""
    findings: tuple[Finding, ...]
    """Oddities that do not stop the run."""
    repeats: Mapping[str, int]
    """Extra visits per epoch, by dataset id; 0 shows each sample once."""
    images: Mapping[str, int]
    """Images of each dataset, without those left out by a limit; by dataset id."""
    left_out: Mapping[str, Mapping[str, int]]
    """By dataset id and reason."""
    scanned: int
    """Image files examined."""
    hashed: int
    """Image files read; 0 if nothing has changed since the last run."""
    captions_read: int
    """Caption files read; 0 if nothing has changed since the last run."""
    made: int
    """Reference images made and stored now."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages of the findings."""
        return tuple(finding.message for finding in self.findings)

    def held_out_counts(self) -> dict[str, int]:
        """Return the number of samples in each held-out set, by dataset id."""
        return SampleTable.of(self.held_out).counts()

    def summary(self) -> dict[str, Any]:
        """Return counts, and the buckets of the training samples, as plain JSON values."""
        held_out = self.held_out_counts()
        table = SampleTable.of(self.samples)
        counts = table.counts() | held_out
        targets, references = table.bucket_counts()
        return {
            "samples": len(self.samples),
            "held_out_samples": len(self.held_out),
            "datasets": {
                dataset_id: {
                    "images": images,
                    "samples": counts.get(dataset_id, 0),
                    "left_out": dict(self.left_out.get(dataset_id, {})),
                    "repeats": self.repeats[dataset_id],
                    "held_out": dataset_id in held_out,
                }
                for dataset_id, images in self.images.items()
            },
            "buckets": _largest_first(targets),
            "reference_buckets": _largest_first(references),
            "files": {
                "scanned": self.scanned,
                "hashed": self.hashed,
                "captions_read": self.captions_read,
                "made": self.made,
            },
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class PairedData:
    """The samples of a run before the generators have run."""

    samples: PackedSamples
    held_out: PackedSamples
    made: tuple[Need, ...]
    """Disk space that the generators' images will take."""


def prepare_samples(
    plan: DataPlan, *, reporter: Reporter, before_making: Callable[[PairedData], None] | None = None
) -> PreparedData:
    """Return all samples of a run, audited.

    Args:
        before_making: Called with all samples before the generators start, which may take hours; may raise.

    Raises:
        DataError: If any data cannot be used; one message lists all problems of all datasets.
        MachineError: If a path for a folder is not a folder, or made images cannot be stored.
        PluginError: If a generator fails.
    """
    _check_folders(plan)
    findings = Findings()
    memory = DataMemory(plan, reporter)
    with paused_garbage_collection(), ImageIndex(plan.index_path) as index:
        if not index.notes and (known := memory.recall()) is not None:
            if before_making is not None:
                before_making(PairedData(samples=known.samples, held_out=known.held_out, made=()))
            return _prepared(known)
        data = _prepare_anew(plan, memory, index, reporter, findings, before_making)
    give_back_memory()
    return data


def _prepare_anew(
    plan: DataPlan,
    memory: DataMemory,
    index: ImageIndex,
    reporter: Reporter,
    findings: Findings,
    before_making: Callable[[PairedData], None] | None,
) -> PreparedData:
    """Return the samples of data that has changed, and remember them."""
    scans, target_sets, samples, held_out = _pair_all(plan, index, reporter, findings, memory=memory)
    needs = tuple(room_needed(made, one.records) for one in target_sets for made in one.dataset.generators)
    paired = PairedData(samples=PackedSamples.of(samples), held_out=PackedSamples.of(held_out), made=needs)
    samples.clear()
    held_out.clear()
    if before_making is not None:
        before_making(paired)
    made = sum(target_set.make_images(index, reporter) for target_set in target_sets)
    findings.raise_problems()
    hashed, captions_read = index.hashed, index.captions_read
    facts = {
        "repeats": {dataset.id: dataset.config.repeats for dataset in plan.datasets},
        "images": {dataset_id: len(scanned.records) for dataset_id, scanned in scans.items()},
        "left_out": {target_set.dataset.id: dict(target_set.left_out) for target_set in target_sets},
        "scanned": sum(scanned.listed for scanned in scans.values()),
    }
    findings.pack()
    found = Remembered(samples=paired.samples, held_out=paired.held_out, findings=tuple(findings.found), facts=facts)
    memory.keep(found)
    for note in index.notes:
        findings.note("index", "", note)
    found = replace(found, findings=tuple(findings.found))
    return _prepared(found, hashed=hashed, captions_read=captions_read, made=made)


def _prepared(found: Remembered, *, hashed: int = 0, captions_read: int = 0, made: int = 0) -> PreparedData:
    return PreparedData(
        samples=found.samples,
        held_out=found.held_out,
        findings=found.findings,
        repeats=found.facts["repeats"],
        images=found.facts["images"],
        left_out=found.facts["left_out"],
        scanned=found.facts["scanned"],
        hashed=hashed,
        captions_read=captions_read,
        made=made,
    )


def pair_samples(plan: DataPlan, *, reporter: Reporter) -> PairedData:
    """Return all samples of a run as they are before the generators run; nothing is written, not even the index.

    Raises:
        DataError: If any data cannot be used; one message lists all problems of all datasets.
    """
    if (known := DataMemory(plan, reporter).recall()) is not None:
        return PairedData(samples=known.samples, held_out=known.held_out, made=())
    with paused_garbage_collection(), ImageIndex(plan.index_path, read_only=True) as index:
        _, _, samples, held_out = _pair_all(plan, index, reporter, Findings())
    return PairedData(samples=PackedSamples.of(samples), held_out=PackedSamples.of(held_out), made=())


@dataclass(frozen=True, kw_only=True)
class AuditedData:
    """The samples that a dataset gives as it is, and everything found about it, problems too."""

    samples: tuple[Sample, ...]
    """Complete samples, held-out ones too."""
    findings: tuple[Finding, ...]
    images: Mapping[str, int]
    """As :attr:`PreparedData.images`, for the datasets that could be read."""
    left_out: Mapping[str, Mapping[str, int]]


def audit_samples(plan: DataPlan, *, reporter: Reporter) -> AuditedData:
    """Return what data with problems has, instead of raising them; generators do not run."""
    findings = Findings(stops=False)
    with paused_garbage_collection(), ImageIndex(plan.index_path) as index:
        scans, target_sets, samples, held_out = _pair_all(plan, index, reporter, findings)
    return AuditedData(
        samples=(*samples, *held_out),
        findings=tuple(findings.found),
        images={dataset_id: len(scanned.records) for dataset_id, scanned in scans.items()},
        left_out={target_set.dataset.id: dict(target_set.left_out) for target_set in target_sets},
    )


def _pair_all(
    plan: DataPlan,
    index: ImageIndex,
    reporter: Reporter,
    findings: Findings,
    *,
    memory: DataMemory | None = None,
) -> tuple[dict[str, Scan], list[TargetSet], list[Sample], list[Sample]]:
    """Return scans, target sets, and the samples to train on and those held out.

    Raises:
        DataError: With every problem found.
    """
    scans = scan_sets(plan, index, reporter, findings, memory=memory)
    readable = (dataset for dataset in plan.target_sets if {dataset.id, *dataset.references} <= scans.keys())
    target_sets = [TargetSet(plan, dataset, scans, findings) for dataset in readable]
    samples: list[Sample] = []
    held_out: list[Sample] = []
    for target_set in target_sets:
        target_set.gather_references(index, reporter)
        with reporter.phase(f"pair {target_set.dataset.id}", len(target_set.records)) as phase:
            own = target_set.samples(phase)
        audit_unedited(findings, target_set.dataset.config, own)
        (held_out if target_set.dataset.held_out else samples).extend(own)
    audit_unused_references(findings)
    audit_empty_captions(findings, [*samples, *held_out])
    audit_held_out(findings, trained=samples, held_out=held_out)
    findings.raise_problems()
    filled = {sample.dataset_id for sample in (*samples, *held_out)}
    for target_set in target_sets:
        if target_set.dataset.id not in filled:
            audit_nothing_left(findings, target_set.dataset.config, target_set.left_out)
    findings.raise_problems()
    return scans, target_sets, samples, held_out


def _check_folders(plan: DataPlan) -> None:
    """Check that paths to write to are folders; they need to be writable only if something has to be written."""
    folders = [("text embeddings", folder) for folder in plan.text_folders]
    for dataset in plan.datasets:
        folders.append((f"dataset {dataset.id!r}: cache_dir_vae", dataset.latents_folder))
        folders += [(f"{made.id}: instance_data_dir", made.folder) for made in dataset.generators if not made.on_demand]
    problems = []
    for name, folder in folders:
        try:
            check_folder(folder, name)
        except MachineError as error:
            problems.append(str(error))
    if problems:
        raise MachineError(*problems)


def _largest_first(buckets: Counter[Size]) -> dict[str, int]:
    """Return the number of images in each bucket, by its name, largest number first."""
    return {f"{width}x{height}": count for (width, height), count in buckets.most_common()}
