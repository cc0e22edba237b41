"""Placed images as plain rows of numbers and texts, which JSON can hold, and back."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from difftrain.data.files.local_image import LocalImage
from difftrain.types import Geometry, ImageRecord, PlacedImage, Recipe, SourceImage
from difftrain.types.source_images import extension_of

Row = list[Any]
"""Dataset, folder or -1, key or place in :attr:`ImageRows.sources`, file, name, width, height, hash, captions, recipe,
geometry; and the focus, if it has one."""
_NO_GEOMETRY = Geometry(resize=(1, 1), crop=(0, 0), bucket=(1, 1))
"""In the rows of records, which have none."""
_MOST_GEOMETRIES = 10_000
"""More distinct ones, as random crops give, stand in their rows."""
_TEXTS_AT_ONCE = 1000

as_json = json.JSONEncoder(separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii
"""As JSON; this escapes bytes of file names that are not UTF-8, too."""


class ImageRows:
    """Writes images as rows; what many of them share stands in a few lists beside the rows."""

    def __init__(self) -> None:
        self.datasets: list[str] = []
        self.folders: list[str] = []
        """Beginnings of the paths of files, up to their keys."""
        self.geometries: list[Geometry] = []
        self.sources: list[SourceImage] = []
        """Images that are no plain files, as they are."""
        self.recipes: list[Recipe] = []
        self._places: dict[Any, int] = {}
        self._beginnings: dict[tuple[str, str | None], str] = {}
        self._shared: dict[int, int] = {}
        """Places of :attr:`geometries` by the object's id: its hash takes as long as all else of a row."""

    @property
    def are_plain(self) -> bool:
        """Whether rows and :meth:`shared` are all that is needed to make the images again."""
        return not self.sources and not self.recipes

    def shared(self) -> dict[str, Any]:
        """Return what the rows share, as plain JSON values."""
        geometries = [_numbers(geometry) for geometry in self.geometries]
        return {"datasets": self.datasets, "folders": self.folders, "geometries": geometries}

    @classmethod
    def restored(cls, shared: Mapping[str, Any]) -> ImageRows:
        """Return rows that share the result of :meth:`shared`."""
        rows = cls()
        rows.datasets, rows.folders = list(shared["datasets"]), list(shared["folders"])
        rows.geometries = [_geometry(numbers) for numbers in shared["geometries"]]
        return rows

    def text(self, placed: PlacedImage) -> str:
        """Return the row of an image as JSON; written by hand, because a general encoder takes twice as long."""
        record = placed.record
        image, key = record.image, record.image.key
        folder, file = None, "null"
        if type(image) is LocalImage and _has_only_a_file(image):
            where = _quoted(key)
            if image.file.endswith(key):
                folder = image.file[: len(image.file) - len(key)]
            else:
                file = _quoted(image.file)
        else:
            where = str(self._add(self.sources, image))
        begins = self._beginnings.get((record.dataset_id, folder)) or self._beginning(record.dataset_id, folder)
        name = "null" if _is_stem(record.key, key) else _quoted(record.key)
        recipe = "null" if record.recipe is None else self._recipe_place(record.recipe)
        focus = "" if record.focus is None else f",{as_json(record.focus)}"
        return (
            f"{begins}{where},{file},{name},{record.width},{record.height},{_quoted(record.content_hash)},"
            f"{captions_text(record.captions)},{recipe},{self._geometry_place(placed.geometry)}{focus}]"
        )

    def _beginning(self, dataset_id: str, folder: str | None) -> str:
        """Return the beginning of the rows of a dataset's images in a folder, and keep it: very many share one."""
        place = -1 if folder is None else self.place(self.folders, folder)
        begins = self._beginnings[dataset_id, folder] = f"[{self.place(self.datasets, dataset_id)},{place},"
        return begins

    def image(self, row: Row) -> PlacedImage:
        """Return the image of a row."""
        dataset, folder, where, file, name, width, height, content_hash, captions, recipe, geometry, *focus = row
        if folder >= 0:
            image: SourceImage = LocalImage(key=where, file=self.folders[folder] + where)
        elif file is not None:
            image = LocalImage(key=where, file=file)
        else:
            image = self.sources[where]
        record = ImageRecord(
            dataset_id=self.datasets[dataset],
            key=_stem(image.key) if name is None else name,
            image=image,
            width=width,
            height=height,
            content_hash=content_hash,
            captions=None if captions is None else tuple(captions),
            recipe=None if recipe is None else self.recipes[recipe],
            focus=tuple(focus[0]) if focus else None,
        )
        placed = self.geometries[geometry] if isinstance(geometry, int) else _geometry(geometry)
        return PlacedImage(record=record, geometry=placed)

    def place(self, texts: list[str], text: str) -> int:
        """Return where a text stands in one of the lists; add it if it is new."""
        known = self._places.get((id(texts), text))
        if known is None:
            known = self._places[id(texts), text] = self._add(texts, text)
        return known

    def _recipe_place(self, recipe: Recipe) -> int:
        known = self._places.get(id(recipe))  # all images of a generator share one; it need not be hashable
        if known is None:
            known = self._places[id(recipe)] = self._add(self.recipes, recipe)
        return known

    def _add(self, values: list[Any], value: Any) -> int:
        values.append(value)
        return len(values) - 1

    def _geometry_place(self, geometry: Geometry) -> int | list[int]:
        known = self._shared.get(id(geometry))
        known = self._places.get(geometry) if known is None else known
        if known is not None:
            return known
        if len(self.geometries) >= _MOST_GEOMETRIES:
            return _numbers(geometry)
        self._places[geometry] = self._shared[id(geometry)] = place = self._add(self.geometries, geometry)
        return place


class JsonRows(Sequence[Any]):
    """Many small JSON values in one text: each is read when asked for."""

    def __init__(self, text: bytes = b"", ends: Sequence[int] = ()) -> None:
        """Take the text of all values, and where each ends in it."""
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, values: Iterable[Any]) -> JsonRows:
        """Return rows that hold these values."""
        return values if isinstance(values, cls) else cls.of_texts(map(as_json, values))

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> JsonRows:
        """Return rows that hold what these JSON texts, all ASCII, say."""
        parts, ends = bytearray(), array("q")
        texts = iter(texts)
        while some := list(islice(texts, _TEXTS_AT_ONCE)):
            ends.extend(islice(accumulate(map(len, some), initial=len(parts)), 1, None))
            parts += "".join(some).encode("ascii")
        return cls(bytes(parts), ends)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all values as arrays, by name, for :meth:`restored`."""
        return {
            "text": np.frombuffer(self.text, dtype=np.uint8),
            "ends": np.asarray(self.ends, dtype=np.int64),
        }

    @classmethod
    def restored(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> JsonRows:
        """Return the rows of :meth:`arrays`."""
        return cls(arrays["text"].tobytes(), array("q", arrays["ends"].tobytes()))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> Any: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Any]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self.ends))[place]
        start = int(self.ends[place - 1]) if place else 0
        return json.loads(self.text[start : int(self.ends[place])])

    def __iter__(self) -> Iterator[Any]:
        start, read = 0, json.JSONDecoder().decode
        for end in map(int, self.ends):
            yield read(self.text[start:end].decode("ascii"))
            start = end


class NamesOf(Sequence[str]):
    """The names of records, each made when asked for."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...

    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [record.name for record in self.records[place]]
        return self.records[place].name


class PackedRecords(Sequence[ImageRecord]):
    """Records of images, each made when asked for."""

    def __init__(self, rows: ImageRows, records: JsonRows) -> None:
        self._rows, self._records = rows, records

    @classmethod
    def of(cls, records: Iterable[ImageRecord]) -> PackedRecords:
        """Return records as a packed sequence."""
        if isinstance(records, cls):
            return records
        rows = ImageRows()
        return cls(
            rows, JsonRows.of_texts(rows.text(PlacedImage(record=one, geometry=_NO_GEOMETRY)) for one in records)
        )

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, place: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[ImageRecord]: ...

    def __getitem__(self, place: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        if isinstance(place, slice):
            return [self._rows.image(row).record for row in self._records[place]]
        return self._rows.image(self._records[place]).record

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
        """Return plain JSON values and arrays that :meth:`restored` makes equal records from.

        None if some of their images are more than files.
        """
        return (self._rows.shared(), self._records.arrays()) if self._rows.are_plain else None

    @classmethod
    def restored(cls, shared: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> PackedRecords:
        """Return the records of a :meth:`state`."""
        return cls(ImageRows.restored(shared), JsonRows.restored(arrays))


def captions_text(captions: Sequence[str] | None) -> str:
    """Return captions as JSON."""
    if captions is None:
        return "null"
    return f"[{','.join(map(_quoted, captions))}]" if len(captions) != 1 else f"[{_quoted(captions[0])}]"


def _has_only_a_file(image: LocalImage) -> bool:
    return image.captions is None and image.size is None and not image.references and image.panel is None


def _is_stem(name: str, key: str) -> bool:
    """Return whether a name is the :func:`_stem` of a key."""
    if key.startswith(name) and _is_extension(key[len(name) :]):
        return True
    return name == _stem(key)


@lru_cache(maxsize=256)
def _is_extension(ending: str) -> bool:
    """Return whether a key that ends so has this extension. Cached, since millions share a few."""
    return ending != "" and extension_of(ending) == ending


def _stem(key: str) -> str:
    return key.removesuffix(extension_of(key))


def _numbers(geometry: Geometry) -> list[int]:
    return [*geometry.resize, *geometry.crop, *geometry.bucket]


def _geometry(numbers: Sequence[int]) -> Geometry:
    return Geometry(resize=(numbers[0], numbers[1]), crop=(numbers[2], numbers[3]), bucket=(numbers[4], numbers[5]))
