"""The shipped photographs: small, complete, distinct, and with a named source and licence."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from PIL import Image

import difftrain.demo

DEMO = Path(difftrain.demo.__file__).parent
TRAINED_ON = sorted((DEMO / "photos").glob("*.jpg"))
HELD_OUT = sorted((DEMO / "held_out").glob("*.jpg"))


def subjects(paths: list[Path]) -> set[str]:
    return {re.sub(r"-\d+$", "", path.stem) for path in paths}


def rows() -> dict[str, str]:
    """Return the table rows of SOURCES.md by the subject of their files."""
    lines = (DEMO / "SOURCES.md").read_text(encoding="utf-8").splitlines()
    return {line.split("|")[1].strip().removesuffix("-*.jpg"): line for line in lines if "-*.jpg" in line}


@pytest.mark.parametrize("path", TRAINED_ON + HELD_OUT, ids=lambda path: path.stem)
def test_a_shipped_image_is_small(path):
    assert path.stat().st_size <= 20_000
    with Image.open(path) as image:
        assert image.size == (128, 128)


def test_no_photograph_is_both_trained_on_and_held_out():
    assert not subjects(TRAINED_ON) & subjects(HELD_OUT)


def test_no_image_is_shipped_twice():
    digests = {hashlib.sha256(path.read_bytes()).digest() for path in TRAINED_ON + HELD_OUT}
    assert len(digests) == len(TRAINED_ON) + len(HELD_OUT)


def test_every_photograph_has_its_author_and_a_free_licence_in_the_table():
    table = rows()
    assert set(table) == subjects(TRAINED_ON) | subjects(HELD_OUT)
    for row in table.values():
        _, _, _, author, licence, source, _ = (cell.strip() for cell in row.split("|"))
        assert author
        assert source
        assert licence in ("CC-BY-4.0", "CC0-1.0", "CC0", "public domain", "public domain (CC0)")
