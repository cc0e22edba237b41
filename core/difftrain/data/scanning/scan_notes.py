"""What a scan says of images, captions and other items that it cannot use as they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from difftrain.data.files.local_image import LocalImage
from difftrain.data.scanning.file_facts import FileFacts
from difftrain.errors import first_few
from difftrain.types import SourceImage

Examined = Sequence[tuple[SourceImage, FileFacts]]
"""Images with what is known of them."""


def unusable_note(unusable: Sequence[str], place: str) -> list[str]:
    if not unusable:
        return []
    items = "1 item" if len(unusable) == 1 else f"{len(unusable)} items"
    return [
        f"{items} of {place} cannot be used: {first_few(unusable)}\nhint: fix what is named, or take it out of {place}"
    ]


def unreadable_note(examined: Examined, total: int, place: str) -> list[str]:
    broken = [(image, one) for image, one in examined if one.error is not None]
    if not broken:
        return []
    are_files = all(isinstance(image, LocalImage) for image, _ in broken)
    names = first_few(f"{image.key if are_files else image.place} ({one.error})" for image, one in broken)
    return [
        f"{len(broken)} of {total} images cannot be read: {names}\n"
        f"hint: {unreadable_advice([one for _, one in broken], place)}"
    ]


def unreadable_advice(facts: Sequence[FileFacts], place: str) -> str:
    """Return advice on images that cannot be read.

    Args:
        place: Where they are, as :attr:`~difftrain.contracts.DataSource.place` of their source.
    """
    refused = any(one.refused for one in facts)
    return f"{'make these images readable' if refused else 'replace these images'}, or take them out of {place}"


def frames_note(examined: Examined) -> list[str]:
    names = [image.key for image, one in examined if one.is_animated]
    if not names:
        return []
    return [f"{len(names)} images have several frames; only the first is used: {first_few(names)}"]


def other_sizes_note(examined: Examined) -> list[str]:
    """Note images whose actual size differs from the data source's; it may have left out others by mistake."""
    names = [
        f"{image.key} ({one.width}x{one.height}, not {image.size[0]}x{image.size[1]})"
        for image, one in examined
        if image.size is not None and one.error is None and image.size != (one.width, one.height)
    ]
    if not names:
        return []
    return [f"{len(names)} images differ from the size in their data source; it is ignored: {first_few(names)}"]


def complaints_note(complaints: Collection[str]) -> list[str]:
    """Report all captions that cannot be read, with the fix for the first."""
    if not complaints:
        return []
    texts = [complaint.partition("\nhint: ")[0] for complaint in complaints]
    hint = next((hint for complaint in complaints if (hint := complaint.partition("\n")[2])), "")
    different = list(dict.fromkeys(texts))  # images of one table have one complaint
    return [f"{len(texts)} captions cannot be read: {first_few(different)}" + (f"\n{hint}" if hint else "")]


def split_note(captions: Collection[tuple[str, ...] | None], *, by_line: bool) -> list[str]:
    count = sum(caption is not None and len(caption) > 1 for caption in captions)
    if not count:
        return []
    which = ", one per line of their caption file" if by_line else ""
    return [f"{count} images have several captions{which}: one of them is drawn at each visit"]
