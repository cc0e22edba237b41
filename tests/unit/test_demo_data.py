"""The shipped photographs: small, complete, distinct, and with a named source and licence."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path

import pytest
from PIL import Image

import difftrain.demo
from difftrain.config.config_files import read_config_file
from difftrain_conditioning_generators.superresolution import Superresolution

DEMO = Path(difftrain.demo.__file__).parent
TRAINED_ON = sorted((DEMO / "photos").glob("*.jpg"))
HELD_OUT = sorted((DEMO / "held_out").glob("*.jpg"))


TO_EDIT = sorted((DEMO / "to_edit").glob("*.png"))


def subjects(paths: list[Path]) -> set[str]:
    return {re.sub(r"-\d+$", "", path.stem) for path in paths}


def rows() -> dict[str, str]:
    """Return the table rows of SOURCES.md by the subject of their files."""
    lines = (DEMO / "SOURCES.md").read_text(encoding="utf-8").splitlines()
    return {line.split("|")[1].strip().removesuffix("-*.jpg"): line for line in lines if "-*.jpg" in line}


@pytest.mark.parametrize("path", TRAINED_ON + HELD_OUT + TO_EDIT, ids=lambda path: path.stem)
def test_a_shipped_image_is_small(path):
    assert path.stat().st_size <= 20_000
    with Image.open(path) as image:
        assert image.size == (128, 128)


def test_every_held_out_image_is_there_to_be_edited_as_the_demos_pairs_blur_it():
    assert [path.stem for path in TO_EDIT] == [path.stem for path in HELD_OUT]
    asked = read_config_file(DEMO / "datasets.jsonc").content[1]["conditioning"]
    generator = Superresolution(**{key: asked[key] for key in ("blur_radius", "add_noise")})
    for sharp, blurred in zip(HELD_OUT, TO_EDIT, strict=True):
        with Image.open(sharp) as image, Image.open(blurred) as shipped:
            assert generator.generate(image.convert("RGB"), random.Random(0)).tobytes() == shipped.tobytes()


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
