"""Turns one dataset's images and captions into records; pixels are not loaded."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

from difftrain.contracts import Listing
from difftrain.data.buckets import SizeLimits, broken_limit
from difftrain.data.entries.data_plan import DatasetPlan
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.files.other_files import note_listing
from difftrain.data.scanning.begun import Begun
from difftrain.data.scanning.file_facts import FileFacts
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.data.scanning.scan_notes import (
    complaints_note,
    frames_note,
    other_sizes_note,
    split_note,
    unreadable_note,
    unusable_note,
)
from difftrain.data.scanning.survey import survey
from difftrain.types import Finding, ImageRecord, Level, Phase, Reporter, SourceImage
from difftrain.types.source_images import extension_of


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The scan of one dataset."""

    records: list[ImageRecord]
    """Images that are used, sorted by the keys from their source."""
    references: Mapping[str, tuple[ImageRecord, ...]]
    """References that the images of a target set bring, by the image's key in the source; empty if none does."""
    left_out: dict[str, int]
    """Number of images that each size limit or filter leaves out, by the option's name."""
    left_out_keys: frozenset[str]
    """Keys of images left out by a limit or filter, or unreadable; their partners are not reported as missing one."""
    listed: int
    """Images of the source, including those that they bring as references."""
    captioned_by_source: bool
    """Whether the captions come from the data source itself."""
    unreadable_captions: frozenset[str]
    """Places of images whose captions could not be read; these are not reported as having none."""
    others: Sequence[str]
    """Files beside the images, as paths below the root; a missing caption may be among them."""
    findings: tuple[Finding, ...]
    """Problems: unreadable images, folders and captions. Notes: images that were left out, and odd ones."""


@dataclass(frozen=True, kw_only=True)
class _Examined:
    """The examined images of a listing."""

    used: Sequence[tuple[SourceImage, FileFacts]]
    left_out: Mapping[str, int]
    left_out_keys: frozenset[str]
    brought: Mapping[str, FileFacts]
    """Facts of images that others bring as references, by place."""
    findings: Sequence[Finding]


@dataclass(frozen=True, kw_only=True)
class BegunScan:
    """A dataset that is listed. If it is large, other processes read its files by now."""

    plan: DatasetPlan
    listing: Listing
    images: Sequence[SourceImage]
    """Those that are read: all except those whose size from the source exceeds a limit."""
    left_out: Counter[str]
    left_out_keys: set[str]
    brought: Sequence[SourceImage]
    """Images that others bring as references."""
    captioned_by_source: bool
    facts: Begun[Phase, FileFacts]
    """Of the images, and then of those that they bring."""
    captions: Begun[dict[str, str], tuple[str, ...] | None] | None
    """Of the images, if they come from a caption source."""


def begin_scan(plan: DatasetPlan, index: ImageIndex, *, written: Mapping[str, Path]) -> BegunScan:
    """List the images of one dataset and begin to read them and their captions, within the index's shared readers.

    Args:
        written: Folders that runs write, by name; files there are not data.

    Raises:
        DataError: If the source does not exist or has no images.
        PluginError: If the source fails or breaks its contract.
    """
    listing = survey(plan, written)
    limits = _limits(plan)
    left_out: Counter[str] = Counter()
    keys: set[str] = set()
    images: list[SourceImage] = []
    for image in listing.images:
        broken = None if image.size is None else broken_limit(image.size, limits)
        if broken is None:
            images.append(image)
        else:
            left_out[broken] += 1
            keys.add(_key(image))
    brought = [] if plan.is_reference else [one for image in images for one in image.references]
    wants_source = plan.takes_source_captions or (plan.captions is not None and plan.captions.repeats_source)
    by_source = wants_source and any(image.captions for image in listing.images)
    # images that stream are encoded in training: decode them now, rather than read the whole set once more
    facts = index.begin_examine([*images, *brought], decode=plan.source.streams)
    captions = None if plan.captions is None or by_source else index.begin_captions(plan.captions, images)
    return BegunScan(
        plan=plan,
        listing=listing,
        images=images,
        left_out=left_out,
        left_out_keys=keys,
        brought=brought,
        captioned_by_source=by_source,
        facts=facts,
        captions=captions,
    )


def finish_scan(begun: BegunScan, reporter: Reporter) -> Scan:
    """Return the records of a dataset, once all of its files are read.

    Raises:
        DataError: If the index cannot be used.
    """
    plan, listing, captioned_by_source = begun.plan, begun.listing, begun.captioned_by_source
    examined = _examine(begun, reporter)
    captions: list[tuple[str, ...] | None] = [None] * len(examined.used)
    complaints: dict[str, str] = {}
    if captioned_by_source:
        captions = [image.captions or None for image, _ in examined.used]
    elif begun.captions is not None:
        captions = begun.captions.finish(complaints)
        if len(examined.used) < len(begun.images):
            found = dict(zip((image.place for image in begun.images), captions, strict=True))
            captions = [found[image.place] for image, _ in examined.used]
        used = {image.place for image, _ in examined.used} if complaints else set()
        complaints = {place: complaint for place, complaint in complaints.items() if place in used}
    captions = [plan.caption_edits.apply(caption, from_source=captioned_by_source) for caption in captions]
    records = [
        _record(plan, image, facts, caption) for (image, facts), caption in zip(examined.used, captions, strict=True)
    ]
    findings = [
        *_told("unusable", "problem", plan, unusable_note(listing.unusable, plan.source.place)),
        *examined.findings,
        *_told("unreadable_caption", "problem", plan, complaints_note(complaints.values())),
        *_told("listing", "note", plan, note_listing(listing)),
        *_told(
            "several_captions",
            "note",
            plan,
            split_note(captions, by_line=not captioned_by_source and isinstance(plan.captions, TextfileCaptions)),
        ),
    ]
    return Scan(
        records=records,
        references=_references(plan, records, examined.brought),
        left_out={**{option: len(keys) for option, keys in listing.left_out.items() if keys}, **examined.left_out},
        left_out_keys=examined.left_out_keys.union(map(_pairing_key, chain(*listing.left_out.values()))),
        listed=len(listing.images) + len(examined.brought),
        captioned_by_source=captioned_by_source,
        unreadable_captions=frozenset(complaints),
        others=listing.others,
        findings=tuple(findings),
    )


def _told(
    kind: str, level: Level, plan: DatasetPlan, messages: Iterable[str], names: Iterable[str] = ()
) -> list[Finding]:
    return [Finding.of_message(kind, level, plan.id, message, tuple(names)) for message in messages]


def _record(
    plan: DatasetPlan, image: SourceImage, facts: FileFacts, captions: tuple[str, ...] | None = None
) -> ImageRecord:
    return ImageRecord(
        dataset_id=plan.id,
        key=_key(image),
        image=image,
        width=facts.width,
        height=facts.height,
        content_hash=facts.content_hash,
        captions=captions,
    )


def _references(
    plan: DatasetPlan, records: Sequence[ImageRecord], brought: Mapping[str, FileFacts]
) -> dict[str, tuple[ImageRecord, ...]]:
    if not brought:
        return {}
    return {
        record.image.key: tuple(_record(plan, one, brought[one.place]) for one in record.image.references)
        for record in records
    }


def _examine(begun: BegunScan, reporter: Reporter) -> _Examined:
    """Wait for the facts of all images, and leave out those that exceed a limit or cannot be read."""
    plan, images, brought = begun.plan, begun.images, begun.brought
    limit_of = lru_cache(maxsize=None)(partial(broken_limit, limits=_limits(plan)))  # many images share a size
    left_out, keys = Counter(begun.left_out), set(begun.left_out_keys)
    everything = [*images, *brought]
    with reporter.phase(f"scan {plan.id}", len(everything)) as phase:
        facts = begun.facts.finish(phase)
    brought_facts = {one.place: its for one, its in zip(brought, facts[len(images) :], strict=True)}
    used: list[tuple[SourceImage, FileFacts]] = []
    for image, one in zip(images, facts, strict=False):
        broken = None if one.error is not None else limit_of((one.width, one.height))
        if broken is not None:
            left_out[broken] += 1
        if broken is None and one.error is None and _can_be_read(image.references, brought_facts):
            used.append((image, one))
        else:
            keys.add(_key(image))
    odd = [
        (image, one)
        for image, one in zip(everything, facts, strict=True)
        if one.error is not None or one.is_animated or image.size is not None
    ]
    broken_names = [image.key for image, one in odd if one.error is not None]
    return _Examined(
        used=used,
        left_out=left_out,
        left_out_keys=frozenset(keys),
        brought=brought_facts,
        findings=[
            *_told(
                "unreadable", "problem", plan, unreadable_note(odd, len(everything), plan.source.place), broken_names
            ),
            *_told("frames", "note", plan, frames_note(odd)),
            *_told("other_size", "note", plan, other_sizes_note(odd)),
        ],
    )


def _can_be_read(references: Sequence[SourceImage], facts: Mapping[str, FileFacts]) -> bool:
    return not facts or all(facts[one.place].error is None for one in references)


def _limits(plan: DatasetPlan) -> SizeLimits:
    return SizeLimits(
        resolution_type=plan.rules.resolution_type,
        minimum_image_size=plan.config.minimum_image_size,
        minimum_aspect_ratio=plan.config.minimum_aspect_ratio,
        maximum_aspect_ratio=plan.config.maximum_aspect_ratio,
        max_upscale=plan.config.max_upscale_threshold,
        rules=plan.rules,
    )


def _key(image: SourceImage) -> str:
    return _pairing_key(image.key)


def _pairing_key(key: str) -> str:
    """Return a key without extension, composed, since macOS and Linux write accented names in different forms.

    Bytes that are not UTF-8 are escaped, so that the key is a text that can be hashed and stored.
    """
    key = key.removesuffix(extension_of(key))
    if key.isascii():
        return key
    spelt = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", spelt)
