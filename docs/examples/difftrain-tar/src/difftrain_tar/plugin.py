"""The whole plugin: a data source that reads pairs from tar files, and the hook that lists it.

Members of one row share their name up to its first dot, as WebDataset writes them:

    0001.target.png  or  0001.png           the image to train on
    0001.reference.png, 0001.reference2.png its references, in the order of the names; may be absent
    0001.txt                                captions, one per line; may be absent

Nothing is unpacked: an image is read from its place in the file. difftrain imports this module at every start, so keep
it light.
"""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from difftrain import DataError, DataSource, Listing, SourceImage, hookimpl

if TYPE_CHECKING:
    from tarfile import TarFile, TarInfo

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
BLOCK = 512
"""Bytes per block of a tar file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TarImage(SourceImage):
    """One member of a tar file, found by its offset."""

    archive: str
    """Absolute path."""
    version: str
    """Size and time of the archive when it was listed: in another version the offset may point to another image."""
    member: str
    offset: int
    length: int

    @property
    def place(self) -> str:
        return f"{self.archive}: {self.member}"

    def stamp(self) -> str:
        return f"{self._unchanged(os.stat(self.archive))}:{self.offset}"  # noqa: PTH116

    def open(self) -> BinaryIO:
        with Path(self.archive).open("rb") as file:
            self._unchanged(os.fstat(file.fileno()))
            file.seek(self.offset)
            return io.BytesIO(file.read(self.length))

    def _unchanged(self, status: os.stat_result) -> str:
        if version_of(status) != self.version:
            raise OSError("the tar file has changed since it was listed")
        return self.version


class TarSource(DataSource):
    """A tar file of rows: image, references and captions."""

    name: ClassVar[str] = "tar"
    gives_references: ClassVar[bool] = True

    tar_file: Path
    """Path of the file, or of a folder of such files (shards), whose rows are used together. They must not be
    compressed, because images are read from their places in them."""

    @property
    def place(self) -> str:
        return f"tar file {self.tar_file}" if self.tar_file.suffix else f"tar files in {self.tar_file}"

    def list_images(self) -> Iterable[SourceImage]:
        return self.survey({}).images

    def survey(self, written: Mapping[str, Path]) -> Listing:
        path = self.tar_file.expanduser().absolute()
        if not path.is_dir():
            return _listing_of(path)
        shards = sorted(path.glob("*.tar"))
        if not shards:
            raise DataError(f"tar_file {path} is a folder without tar files\nhint: name one that has some")
        return _joined([(shard.stem, _listing_of(shard)) for shard in shards])


def _listing_of(path: Path) -> Listing:
    import tarfile

    try:
        with tarfile.open(path, "r:") as archive:
            version = version_of(path.stat())
            rows = _Rows(archive, str(path), version)
            if not _is_complete(path):  # tarfile ends silently if a header is cut
                raise tarfile.ReadError("its end is missing")
            return rows.listing()
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"tar_file {path} cannot be read ({error})\nhint: name a tar file that is complete and not compressed"
        ) from error


def _joined(listings: Sequence[tuple[str, Listing]]) -> Listing:
    """Put the shards together; each shard's name begins its keys, since shards often number their rows from 0."""
    return Listing(
        images=[replace(image, key=f"{shard}/{image.key}") for shard, listing in listings for image in listing.images],
        others=[f"{shard}/{other}" for shard, listing in listings for other in listing.others],
        unusable=[f"{shard}/{row}" for shard, listing in listings for row in listing.unusable],
    )


class _Rows:
    """The members of an archive by row, and their roles."""

    def __init__(self, archive: TarFile, path: str, version: str) -> None:
        self._archive, self._path, self._version = archive, path, version
        self._rows: dict[str, dict[str, TarInfo]] = defaultdict(dict)
        self._others: list[str] = []
        self._unusable: list[str] = []
        for member in archive:
            if member.isfile():
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                row, _, kind = name.partition(".")
                self._rows[f"{folder}/{row}".lstrip("/")][kind] = member  # of a repeated name the last member counts

    def listing(self) -> Listing:
        images = [image for row in self._rows if (image := self._image(row)) is not None]
        images.sort(key=lambda image: image.key)
        return Listing(images=images, others=sorted(self._others), unusable=sorted(self._unusable))

    def _image(self, row: str) -> TarImage | None:
        members = self._rows[row]
        images = sorted(kind for kind in members if f".{kind}".lower().endswith(IMAGES))
        targets = [kind for kind in images if kind.count(".") == 0 or kind.startswith("target.")]
        references = [kind for kind in images if kind.startswith("reference") and kind.count(".") == 1]
        used = {*targets, *references, "txt"}
        self._others += [f"{row}.{kind}" for kind in members if kind not in used]
        if len(targets) != 1:
            if targets or references:
                self._unusable.append(f"{row} ({len(targets)} images to train on in one row)")
            return None
        (target,) = targets
        return self._member(
            f"{row}.{target.rpartition('.')[2]}",
            members[target],
            captions=self._captions(row),
            references=tuple(self._member(f"{row}.{kind}", members[kind]) for kind in references),
        )

    def _member(
        self,
        key: str,
        member: TarInfo,
        captions: tuple[str, ...] | None = None,
        references: tuple[SourceImage, ...] = (),
    ) -> TarImage:
        return TarImage(
            key=key,
            captions=captions,
            references=references,
            archive=self._path,
            version=self._version,
            member=member.name,
            offset=member.offset_data,
            length=member.size,
        )

    def _captions(self, row: str) -> tuple[str, ...] | None:
        member = self._rows[row].get("txt")
        file = self._archive.extractfile(member) if member else None
        if file is None:
            return None
        try:
            lines = file.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            self._unusable.append(f"{row}.txt (not UTF-8)")
            return None
        return tuple(line.strip() for line in lines if line.strip()) or ("",)


def _is_complete(path: Path) -> bool:
    """Return whether a tar file ends as all should, with an empty block."""
    with path.open("rb") as file:
        file.seek(-BLOCK, os.SEEK_END)
        return file.tell() % BLOCK == 0 and not any(file.read())


def version_of(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}"


@hookimpl
def difftrain_data_sources() -> Iterable[type[DataSource]]:
    return (TarSource,)
