"""The image sheet of a validation: reference | base | after N steps | target, one row per instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 256
"""Longer edge of an image on the sheet, in pixels."""
GAP = 8
TEXT_HEIGHT = 22
NOTE_HEIGHT = 16
BACKGROUND, INK, FAINT = "white", "black", "gray"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image with a small note below it."""

    image: Image.Image
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One instruction with its images."""

    caption: str
    references: tuple[Shown, ...]
    base: Shown | None = None
    """The image that the model drew before the first step."""
    result: Shown
    target: Shown | None


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A line of text, and below it an image for each column, or None."""

    caption: str
    cells: Sequence[Shown | None]


def draw_sheet(rows: Sequence[Row], title: str, *, step: int) -> Image.Image:
    """Draw all rows below each other; rows with fewer references leave columns empty, so that columns line up.

    The base column is there only if some row has a base.
    """
    slots = max((len(row.references) for row in rows), default=0)
    has_base = any(row.base for row in rows)
    labels = [
        *(f"reference {i + 1}" if slots > 1 else "reference" for i in range(slots)),
        *(["base"] if has_base else []),
        f"after {step} step{'' if step == 1 else 's'}",
        "target",
    ]
    table = []
    for row in rows:
        missing = [None] * (slots - len(row.references))
        base = [row.base] if has_base else []
        cells = [*row.references, *missing, *base, row.result, row.target]
        table.append(TableRow(caption=row.caption or "(no instruction)", cells=cells))
    return draw_table(labels, table, title)


def draw_table(labels: Sequence[str], rows: Sequence[TableRow], title: str) -> Image.Image:
    """Draw a title, a label above each column, and the rows below each other."""
    width = GAP + len(labels) * (CELL + GAP)
    sheet = Image.new("RGB", (width, GAP + 2 * TEXT_HEIGHT + sum(map(_height, rows))), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    draw.text((GAP, GAP), _shorten(title, draw, font, width - 2 * GAP), fill=INK, font=font)
    for column, label in enumerate(labels):
        draw.text((_left(column), GAP + TEXT_HEIGHT), _shorten(label, draw, font, CELL), fill=FAINT, font=font)
    top = GAP + 2 * TEXT_HEIGHT
    for row in rows:
        caption = _shorten(row.caption, draw, font, width - 2 * GAP)
        draw.text((GAP, top), caption, fill=INK, font=font)
        for column, shown in enumerate(row.cells):
            if shown is not None:
                fitted = _fit(shown.image)
                sheet.paste(fitted, (_left(column), top + TEXT_HEIGHT))
                draw.text((_left(column), top + TEXT_HEIGHT + fitted.height), shown.note, fill=FAINT, font=small)
        top += _height(row)
    return sheet


def _left(column: int) -> int:
    return GAP + column * (CELL + GAP)


def _height(row: TableRow) -> int:
    all_shown = [shown for shown in row.cells if shown is not None]
    notes = NOTE_HEIGHT if any(shown.note for shown in all_shown) else 0
    return TEXT_HEIGHT + GAP + notes + max(_fitted_size(shown.image)[1] for shown in all_shown)


def _fitted_size(image: Image.Image) -> tuple[int, int]:
    scale = CELL / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _fit(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize(_fitted_size(image), Image.Resampling.LANCZOS)


def _shorten(text: str, draw: ImageDraw.ImageDraw, font: Font, width: int) -> str:
    line = " ".join(text.split())
    if draw.textlength(line, font=font) <= width:
        return line
    while line and draw.textlength(line + " ...", font=font) > width:
        line = line[:-1]
    return line + " ..."
