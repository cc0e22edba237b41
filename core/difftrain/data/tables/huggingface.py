"""Hugging Face sets: a data source whose images are rows, and the captions of these rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import field_validator, model_validator

from difftrain.contracts import DataSource, Listing
from difftrain.data.files.captions import PromptedCaptions
from difftrain.data.tables.columns import Column, find_column, is_image, is_text
from difftrain.data.tables.row_filter import RowFilter, one_or_many, row_filter
from difftrain.data.tables.row_groups import KEPT_BYTES
from difftrain.data.tables.row_image import RowImage
from difftrain.data.tables.set_files import FoundFile, find_files
from difftrain.data.tables.set_options import SetOptions, need_pyarrow, parse_block
from difftrain.data.tables.table_file import TableFile, open_table
from difftrain.errors import DataError, printable
from difftrain.types import Panel, Shelf, SourceImage

if TYPE_CHECKING:
    import pyarrow as pa

_CAPTION_COLUMNS = ("caption", "text", "prompt")
_KEY_DIGITS = 9


class HuggingFaceSource(DataSource):
    """A set of the Hugging Face hub, or its files on this machine; needs the extra ``hf``."""

    name: ClassVar[str] = "huggingface"

    dataset_name: str | None = None
    """A set of the hub (``OWNER/NAME``), a folder of parquet or arrow files, one such file, or a saved set."""
    split: str | None = None
    """Part of the set; default: train, or the only one."""
    revision: str | None = None
    """Branch, tag or commit of a set of the hub; default: its main branch."""
    streaming: bool = False
    """Read files of the hub there, keep none of them, and encode images when a batch first needs them, in the order in
    which they are stored."""
    image_column: str | None = None
    """As in the block."""
    caption_column: tuple[str, ...] = ()
    """As in the block."""
    fallback_caption_column: str | None = None
    """As in the block."""
    huggingface: dict[str, Any] = {}
    """A block: the columns and rows to use."""

    @field_validator("caption_column", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return one_or_many(value)

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        need_pyarrow("type = huggingface")
        problems = []
        settings = None
        try:
            settings = parse_block(SetOptions, self.huggingface, "huggingface: ")
        except ValueError as error:
            problems.append(str(error))
        if settings is not None:
            for key, outer in self._beside().items():
                inner = getattr(settings, key)
                if key in settings.model_fields_set and inner and inner != outer:
                    problems.append(
                        f"{key} is {_shown(outer)} beside the block huggingface and {_shown(inner)} inside it; keep one"
                    )
        if not self.dataset_name and not self.huggingface.get("dataset_name"):
            problems.append("dataset_name is missing; name a set of the hub, or a folder of parquet files")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def settings(self) -> SetOptions:
        """Return the values of the block, and those beside it."""
        return parse_block(SetOptions, self.huggingface, "huggingface: ").model_copy(update=self._beside())

    def _beside(self) -> dict[str, Any]:
        """Return the values given beside the block that may also stand inside it."""
        given = {key: getattr(self, key) for key in self.model_fields_set if key in SetOptions.model_fields}
        return {key: value for key, value in given.items() if value or value is False}

    @property
    def place(self) -> str:
        return f"set {printable(str(self.settings.dataset_name))}"

    @property
    def streams(self) -> bool:
        return bool(self.settings.streaming)

    def list_images(self) -> Iterable[SourceImage]:
        return self.survey({}).images

    def survey(self, written: Mapping[str, Path]) -> Listing:
        settings = self.settings
        assert settings.dataset_name is not None, "validated"
        files = find_files(settings.dataset_name, settings.split, settings.revision, streaming=bool(settings.streaming))
        rows = _Rows(settings, settings.dataset_name)
        for file in files:
            rows.take_file(file)
        return Listing(images=rows.images, left_out={"filter_func": rows.left_out}, notes=rows.notes())


class HuggingFaceCaptions(PromptedCaptions):
    """The caption column of a Hugging Face set."""

    name: ClassVar[str] = "huggingface"
    repeats_source: ClassVar[bool] = True

    def files(self, image: SourceImage) -> tuple[str | Path, ...]:
        return ()

    def captions(self, image: SourceImage) -> tuple[str, ...] | None:
        if not isinstance(image, RowImage):
            raise DataError(
                f"{printable(image.place)}: is no row of a Hugging Face set\n"
                "hint: set another caption_strategy, or type = huggingface"
            )
        return image.captions


class _Rows:
    """The rows of a split, taken file by file."""

    def __init__(self, settings: SetOptions, name: str) -> None:
        self._settings, self._name = settings, name
        composite = settings.composite
        self._panel = Panel(index=composite.select_index, count=composite.image_count) if composite.enabled else None
        self._filter = RowFilter()
        self._columns: dict[str, Column] = {}
        self._rows = 0
        self._shelves: list[Shelf] = []
        self.images: list[RowImage] = []
        self.left_out: list[str] = []
        """Keys of the rows that the filter does not keep."""

    def take_file(self, found: FoundFile) -> None:
        file = found.path
        try:
            self._take(found, open_table(file, found.version))
        except OSError as error:
            raise DataError(f"{printable(file)} cannot be read ({error.strerror or error})") from error
        except DataError as error:
            raise DataError(f"set {printable(self._name)}, file {printable(Path(file).name)}: {error}") from error

    def notes(self) -> list[str]:
        """Say what the filter left out, and which row groups are too large.

        Raises:
            DataError: If it left out everything.
        """
        left_out = self._filter.left_out
        reasons = ", ".join(f"{count} not with {meaning}" for meaning, count in left_out.items())
        if not self.images and self._rows:
            raise DataError(
                f"set {printable(self._name)}: filter_func keeps none of {self._rows} rows ({reasons})\n"
                "hint: lower the limits, or check their spelling"
            )
        notes = [f"filter_func keeps {len(self.images)} of {self._rows} rows: {reasons}"] if left_out else []
        return [*notes, *_note_large_groups(self._shelves, self._name)]

    def _take(self, found: FoundFile, table: TableFile) -> None:
        image_column = self._image_column(table.schema)
        shelves = table.shelves(image_column.top)
        self._shelves += shelves
        captions = self._caption_columns(table.schema)
        counted = self._filter.left_out
        self._filter = row_filter(
            self._settings.filter,
            table.schema,
            width_column=self._settings.width_column,
            height_column=self._settings.height_column,
        )
        self._filter.left_out = counted
        tops = sorted(self._filter.tops | {column.top for columns in captions for column in columns})
        rows = table.values(tops) if tops else ({} for _ in range(table.rows))
        for number, row in enumerate(rows):
            key = f"{self._rows + number:0{_KEY_DIGITS}}"
            if not self._filter.keeps(row):
                self.left_out.append(key)
            else:
                self.images.append(
                    RowImage(
                        key=key,
                        captions=_captions(captions, row),
                        file=found.path,
                        version=found.version,
                        row=number,
                        column=image_column,
                        group=shelves[table.shelf_number(number)] if shelves else None,
                        panel=self._panel,
                    )
                )
        self._rows += table.rows

    def _image_column(self, schema: pa.Schema) -> Column:
        column, kind = find_column("image_column", self._settings.image_column, schema)
        if not is_image(kind):
            able = ", ".join(field.name for field in schema if is_image(field.type)) or "none"
            raise DataError(f"image_column {column.name!r} holds {kind}, not images; columns that may: {able}")
        return self._columns.setdefault(column.name, column)  # rows share one object

    def _caption_columns(self, schema: pa.Schema) -> Sequence[Sequence[Column]]:
        """Return the columns whose texts are all captions, then those that are tried where these have none."""
        settings = self._settings
        wanted = settings.caption_column or tuple(one for one in _CAPTION_COLUMNS if one in schema.names)[:1]
        found = [[_text_column("caption_column", name, schema) for name in wanted]]
        for key in ("fallback_caption_column", "description_column"):
            name = getattr(settings, key)
            if name is not None:
                found.append([_text_column(key, name, schema)])
        return found


def _note_large_groups(shelves: Sequence[Shelf], name: str) -> list[str]:
    large = [one.bytes for one in shelves if one.bytes > KEPT_BYTES]
    if not large:
        return []
    return [
        f"set {printable(name)}: {len(large)} of {len(shelves)} row groups hold more than {KEPT_BYTES >> 20} MiB of "
        f"images, the largest {max(large) >> 20} MiB: reading one image decodes its whole group, which takes that much "
        "memory and, in random order, that much time for nearly every image\n"
        "hint: write the files again in groups of 100 rows, as docs/rows.md shows, or set streaming = true, which "
        "reads a group once an epoch"
    ]


def _text_column(key: str, name: str, schema: pa.Schema) -> Column:
    column, kind = find_column(key, name, schema)
    if not is_text(kind):
        raise DataError(f"{key} {name!r} holds {kind}, not text")
    return column


def _shown(value: object) -> str:
    return repr(", ".join(value) if isinstance(value, tuple) else value)


def _captions(choices: Sequence[Sequence[Column]], row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the captions of the first columns that have any; an empty one if all that is there is an empty text."""
    is_empty = False
    for columns in choices:
        values = [column.of(row[column.top]) for column in columns]
        flat = [text for value in values for text in (value if isinstance(value, list) else [value])]
        texts = [text.strip() for text in flat if isinstance(text, str)]
        captions = tuple(dict.fromkeys(text for text in texts if text))
        if captions:
            return captions
        is_empty |= bool(texts)
    return ("",) if is_empty else None
