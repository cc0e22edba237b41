"""The picture sheet of a validation: reference | result | target, a row an instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 256
"""Longer edge of a picture on the sheet, in pixels."""
GAP = 8
TEXT_HEIGHT = 22
BACKGROUND, INK, FAINT = "white", "black", "gray"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One instruction with its pictures."""

    caption: str
    references: tuple[Image.Image, ...]
    result: Image.Image
    target: Image.Image | None


def draw_sheet(rows: Sequence[Row], title: str) -> Image.Image:
    """All rows below each other; rows with fewer references leave their columns empty, so columns line up."""
    slots = max((len(row.references) for row in rows), default=0)
    labels = [f"reference {i + 1}" if slots > 1 else "reference" for i in range(slots)] + ["result", "target"]
    width = GAP + len(labels) * (CELL + GAP)
    sheet = Image.new("RGB", (width, GAP + 2 * TEXT_HEIGHT + sum(map(_height, rows))), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for column, label in enumerate(labels):
        draw.text((GAP + column * (CELL + GAP), GAP + TEXT_HEIGHT), label, fill=FAINT, font=font)
    top = GAP + 2 * TEXT_HEIGHT
    for row in rows:
        draw.text((GAP, top), _shorten(row.caption, draw, font, width - 2 * GAP), fill=INK, font=font)
        missing = [None] * (slots - len(row.references))
        for column, picture in enumerate([*row.references, *missing, row.result, row.target]):
            if picture is not None:
                sheet.paste(_fit(picture), (GAP + column * (CELL + GAP), top + TEXT_HEIGHT))
        top += _height(row)
    return sheet


def _height(row: Row) -> int:
    pictures = [picture for picture in (*row.references, row.result, row.target) if picture is not None]
    return TEXT_HEIGHT + GAP + max(_fitted_size(picture)[1] for picture in pictures)


def _fitted_size(picture: Image.Image) -> tuple[int, int]:
    scale = CELL / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _fit(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize(_fitted_size(picture), Image.Resampling.LANCZOS)


def _shorten(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    line = " ".join(text.split()) or "(no instruction)"
    if draw.textlength(line, font=font) <= width:
        return line
    while line and draw.textlength(line + " ...", font=font) > width:
        line = line[:-1]
    return line + " ..."
