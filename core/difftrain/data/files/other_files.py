"""The files in a data folder that are not used: counted and reported once, so that nothing just vanishes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from difftrain.contracts import Listing
from difftrain.data.files.file_types import (
    CAPTION,
    DECODER_PACKAGES,
    DOCUMENTS,
    IMAGE_FORMATS,
    UNREAD_IMAGES,
    VIDEOS,
    suffix_of,
)
from difftrain.errors import first_few, printable


def note_listing(listing: Listing) -> list[str]:
    """Return all notes about a listing, without the dataset's name."""
    notes = list(listing.notes)
    if listing.written:
        notes.append(_written_note(listing.written))
    if listing.skipped:
        notes.append(f"{len(listing.skipped)} hidden or system files and folders are skipped: "
                     f"{first_few(listing.skipped)}")  # fmt: skip
    return notes + note_other_files(listing)


def note_written(written: Mapping[str, int]) -> str:
    """Return ``2 images in folders that runs write (output_dir out 2)``."""
    folders = ", ".join(f"{printable(name)} {count}" for name, count in written.items())
    return f"{sum(written.values())} images in folders that runs write ({folders})"


def _written_note(written: Mapping[str, int]) -> str:
    folders = ", ".join(f"{printable(name)} ({count})" for name, count in written.items())
    return f"{sum(written.values())} images are left out because they are in folders that runs write: {folders}"


def note_other_files(listing: Listing) -> list[str]:
    """Return notes about unsupported images, videos, captions without an image, and the rest."""
    images: list[str] = []
    videos: list[str] = []
    captions: list[str] = []
    rest: list[str] = []
    stems = {_stem(image.key) for image in listing.images}
    for name in listing.others:
        # true for nearly all of hundreds of thousands of files
        if name.endswith(CAPTION) and (stem := name[: -len(CAPTION)]) in stems and not _is_document(stem):
            continue
        suffix = suffix_of(name)
        if suffix in IMAGE_FORMATS or suffix in UNREAD_IMAGES:
            images.append(name)
        elif suffix in VIDEOS:
            videos.append(name)
        elif suffix == CAPTION and not _is_document(_stem(name)):
            captions.append(name)
        else:
            rest.append(name)
    notes = [_unread_images(images)] if images else []
    if videos:
        notes.append(f"{len(videos)} videos are not read: {first_few(videos)}")
    orphans = _without_image(captions, [*(image.key for image in listing.images), *images, *videos]) if captions else []
    if orphans:
        notes.append(
            f"{len(orphans)} caption files have no image: {first_few(orphans)}\n"
            "hint: give each caption the name of its image, in the same folder"
        )
    if rest:
        notes.append(f"{len(rest)} other files are not read: {first_few(rest)}")
    return notes


def _is_document(stem: str) -> bool:
    return stem[stem.rfind("/") + 1 :].lower() in DOCUMENTS


def _unread_images(names: Sequence[str]) -> str:
    counts = Counter(sorted(suffix_of(name) for name in names)).most_common()
    endings = ", ".join(f"{suffix} {count}" for suffix, count in counts)
    packages = {
        suffix: DECODER_PACKAGES[IMAGE_FORMATS[suffix]]
        for suffix, _ in counts
        if IMAGE_FORMATS.get(suffix) in DECODER_PACKAGES
    }
    remedies = "".join(f"; {suffix} is read once {package} is installed" for suffix, package in packages.items())
    return (
        f"{len(names)} images have unsupported formats ({endings}): {first_few(names)}\n"
        f"hint: convert them to PNG or JPEG{remedies}"
    )


def _without_image(captions: Sequence[str], images: Sequence[str]) -> list[str]:
    """Return captions without an image, counting images that are not read or named in full (``cat.png.txt``)."""
    stems = {_stem(name) for name in images}
    left = [name for name in captions if _stem(name) not in stems]
    if not left:  # true for nearly all of hundreds of thousands of captions
        return []
    known = {name.casefold() for name in (*stems, *images)}
    return [name for name in left if _stem(name).casefold() not in known]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
