"""The shipped photographs and pairs: small, of several shapes, complete, and with a named source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

import difftrain.demo

DEMO = Path(difftrain.demo.__file__).parent
PHOTOS = sorted((DEMO / "photos").glob("*.jpg"))
EDITS = sorted((DEMO / "pairs" / "edits").glob("*.jpg"))


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_photographs_are_landscape_portrait_and_square():
    shapes = {(width > height) - (width < height) for width, height in map(size, PHOTOS)}
    assert shapes == {1, -1, 0}


@pytest.mark.parametrize("path", PHOTOS + EDITS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_shipped_picture_is_small(path):
    assert path.stat().st_size <= 30_000
    assert min(size(path)) == 192


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_a_photograph_has_its_source_and_licence_beside_it(path):
    lines = (DEMO / "photos" / "SOURCES.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith("|") and path.name in line.split("|")[1]]
    assert "public domain" in row or "CC0" in row


def test_every_edit_has_a_reference_of_its_size_and_an_instruction():
    for edit in EDITS:
        assert size(DEMO / "pairs" / "references" / edit.name) == size(edit)
        assert edit.with_suffix(".txt").read_text(encoding="utf-8").strip()


def test_a_reference_is_the_very_file_of_its_photograph():
    references = sorted((DEMO / "pairs" / "references").glob("*.jpg"))
    assert [digest(path) for path in references] == [digest(DEMO / "photos" / path.name) for path in references]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
