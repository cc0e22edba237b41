"""The images of ``--image`` with their instructions and targets: found, matched by name and opened once. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.data.files.image_formats import readable_suffixes
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.pixels import open_upright
from difftrain.data.files.walk import walk_folder
from difftrain.errors import DataError, first_few, printable
from difftrain.types import ImageRecord, Reporter

if TYPE_CHECKING:
    from difftrain.config.problems import Problems
    from difftrain.editing.asked_edit import AskedEdit


@dataclass(frozen=True, kw_only=True)
class ImageToEdit:
    """One image and what is to become of it."""

    record: ImageRecord
    prompt: str
    target: ImageRecord | None


@dataclass(frozen=True, kw_only=True)
class ImagesToEdit:
    """Everything that is edited in one call."""

    images: tuple[ImageToEdit, ...]
    references: tuple[ImageRecord, ...]
    """Further references of every image, in order."""
    notes: tuple[str, ...]


def find_images(asked: AskedEdit, problems: Problems, reporter: Reporter) -> ImagesToEdit | None:
    """Return the images, every one decoded once; None after a problem, with all of them recorded."""
    before = len(problems)
    listed = _listed("--image", asked.image, problems)
    targets = _targets(asked, listed, problems)
    extra = [image for path in asked.references for image in _listed("--reference", path, problems, folders=False)]
    prompts = _prompts(asked, listed, problems)
    every = {image.file: image for image in (*listed, *extra, *targets.values())}
    records: dict[str, ImageRecord] = {}
    with reporter.phase("open images", len(every)) as phase:
        for image in every.values():
            with problems.catching():
                records[image.file] = _record(image)
            phase.advance(item=image.key)
    if len(problems) > before:
        return None
    images = [
        ImageToEdit(
            record=records[image.file],
            prompt=prompt,
            target=records[targets[image.stem].file] if image.stem in targets else None,
        )
        for image, prompt in zip(listed, prompts, strict=True)
    ]
    without = [image.record.name for image in images if image.target is None]
    notes = [f"{len(without)} of {len(images)} images have no target: {first_few(without)}"]
    return ImagesToEdit(
        images=tuple(images),
        references=tuple(records[image.file] for image in extra),
        notes=tuple(notes if targets and without else ()),
    )


def _record(image: LocalImage) -> ImageRecord:
    """Return the image, decoded once, so that a damaged one is known before the model is loaded."""
    width, height = open_upright(image).size
    return ImageRecord(dataset_id="edit", key=image.stem, image=image, width=width, height=height, content_hash="")


def _listed(flag: str, path: Path, problems: Problems, *, folders: bool = True) -> list[LocalImage]:
    """Return the one image of a path, or all below a folder in the order of their names."""
    if not path.exists():
        problems.add(f"{flag} {printable(path)} does not exist\nhint: relative paths start at {Path.cwd()}")
        return []
    if path.is_file():
        return [LocalImage.at(path)]
    if not folders:
        problems.add(f"{flag} {printable(path)} is a folder; name one image file, and repeat {flag} for more")
        return []
    found = walk_folder(os.path.abspath(path), readable_suffixes(), {})  # noqa: PTH100
    if not found.images:
        problems.add(f"{flag} {printable(path)} has no images")
    return [image for image in found.images if isinstance(image, LocalImage)]


def _targets(asked: AskedEdit, listed: Sequence[LocalImage], problems: Problems) -> dict[str, LocalImage]:
    """Return the target of each image by its name without the extension; images without one are left out."""
    if asked.targets is None:
        return {}
    found = _listed("--targets", asked.targets, problems)
    if asked.targets.is_file():
        if asked.image.is_file():
            return {image.stem: found[0] for image in listed}
        problems.add(f"--targets {printable(asked.targets)} is one file, and --image a folder; name a folder")
        return {}
    named = {image.stem: image for image in found}
    if found and listed and not any(image.stem in named for image in listed):
        problems.add(
            f"--targets {printable(asked.targets)} has no image with the name of one to edit, such as "
            f"{first_few(image.stem for image in listed)}; it has {first_few(named)}"
        )
    return {image.stem: named[image.stem] for image in listed if image.stem in named}


def _prompts(asked: AskedEdit, listed: Sequence[LocalImage], problems: Problems) -> list[str]:
    """Return each image's instruction: ``--prompt``, or the first line of the text file beside it."""
    if asked.prompt is not None:
        return [asked.prompt] * len(listed)
    found: list[str] = []
    missing: list[str] = []
    for image in listed:
        path = image.path.with_suffix(".txt")
        try:
            lines = path.read_text(encoding="utf-8-sig").strip().splitlines()
        except FileNotFoundError:
            missing.append(path.name)
            lines = []
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{printable(path)} cannot be read: {error}") from error
        found.append(lines[0] if lines else "")
    if missing:
        problems.add(
            f"--prompt is missing, and {len(missing)} of {len(listed)} images have no text file with an instruction "
            f'beside them: {first_few(missing)}\nhint: say what to do, as in training: --prompt "..."'
        )
    return found
