"""What a data folder holds beside the pictures that are used: told once and counted, so that nothing just vanishes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from difftrain.contracts import Listing
from difftrain.data.files.file_types import (
    CAPTION,
    DECODER_PACKAGES,
    DOCUMENTS,
    PICTURE_FORMATS,
    UNREAD_PICTURES,
    VIDEOS,
    suffix_of,
)
from difftrain.errors import first_few, printable


def note_listing(listing: Listing) -> list[str]:
    """All that is worth a word about a listing, each without the dataset's name."""
    notes = list(listing.notes)
    if listing.written:
        notes.append(_written_note(listing.written))
    if listing.skipped:
        notes.append(f"{len(listing.skipped)} hidden or system files and folders are skipped: "
                     f"{first_few(listing.skipped)}")  # fmt: skip
    return notes + note_other_files(listing)


def note_written(written: Mapping[str, int]) -> str:
    """``2 pictures in folders that runs write (output_dir out 2)``."""
    folders = ", ".join(f"{printable(name)} {count}" for name, count in written.items())
    return f"{sum(written.values())} pictures in folders that runs write ({folders})"


def _written_note(written: Mapping[str, int]) -> str:
    folders = ", ".join(f"{printable(name)} ({count})" for name, count in written.items())
    return f"{sum(written.values())} pictures are left out, they lie in folders that runs write: {folders}"


def note_other_files(listing: Listing) -> list[str]:
    """Pictures of kinds that are not read, videos, captions without a picture, and the rest."""
    pictures: list[str] = []
    videos: list[str] = []
    captions: list[str] = []
    rest: list[str] = []
    for name in listing.others:
        suffix = suffix_of(name)
        if suffix in PICTURE_FORMATS or suffix in UNREAD_PICTURES:
            pictures.append(name)
        elif suffix in VIDEOS:
            videos.append(name)
        elif suffix == CAPTION and _stem(name).rpartition("/")[2].lower() not in DOCUMENTS:
            captions.append(name)
        else:
            rest.append(name)
    notes = [_unread_pictures(pictures)] if pictures else []
    if videos:
        notes.append(f"{len(videos)} videos are not read: {first_few(videos)}")
    orphans = _without_picture(captions, [*(image.key for image in listing.images), *pictures, *videos])
    if orphans:
        notes.append(
            f"{len(orphans)} caption files have no picture: {first_few(orphans)}\n"
            "hint: give a caption the name of its picture, in the same folder"
        )
    if rest:
        notes.append(f"{len(rest)} other files are not read: {first_few(rest)}")
    return notes


def _unread_pictures(names: Sequence[str]) -> str:
    counts = Counter(sorted(suffix_of(name) for name in names)).most_common()
    kinds = ", ".join(f"{suffix} {count}" for suffix, count in counts)
    packages = {
        suffix: DECODER_PACKAGES[PICTURE_FORMATS[suffix]]
        for suffix, _ in counts
        if PICTURE_FORMATS.get(suffix) in DECODER_PACKAGES
    }
    remedies = "".join(f"; {suffix} is read once {package} is installed" for suffix, package in packages.items())
    return (
        f"{len(names)} pictures are of kinds that are not read ({kinds}): {first_few(names)}\n"
        f"hint: convert them to PNG or JPEG{remedies}"
    )


def _without_picture(captions: Sequence[str], pictures: Sequence[str]) -> list[str]:
    """Captions to which no picture belongs, not even one that is not read or one named in full (``cat.png.txt``)."""
    stems = {_stem(name) for name in pictures}
    left = [name for name in captions if _stem(name) not in stems]
    if not left:  # as it is in nearly all of hundreds of thousands
        return []
    known = {name.casefold() for name in (*stems, *pictures)}
    return [name for name in left if _stem(name).casefold() not in known]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
