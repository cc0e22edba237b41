"""docs/families.md names the members of the contract."""

import re
from pathlib import Path

import pytest

import difftrain

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "families.md").read_text(encoding="utf-8")


def has(name: str) -> bool:
    owner, _, member = name.partition(".")
    kind = getattr(difftrain, owner)
    return not member or hasattr(kind, member) or any(member in base.__annotations__ for base in kind.__mro__[:-1])


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]\w+\.\w+)`", PAGE))))
def test_every_member_exists(name):
    assert name.partition(".")[0] in difftrain.__all__ or name.startswith("Flux2")
    assert name.startswith("Flux2") or has(name)


def test_every_point_is_there():
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)] == list(range(1, 19))


def test_every_public_name_of_the_mends_exists():
    mends = PAGE.partition("## What the two families")[2]
    names = re.findall(r"`([a-zA-Z]\w+)`", mends.partition("What they could not say")[0])
    assert len(names) > 5
    assert [name for name in names if name not in difftrain.__all__] == []


@pytest.mark.parametrize("example", ["difftrain-qwen-image-edit", "difftrain-instruct-pix2pix"])
def test_a_whole_family_takes_less_than_360_lines(example):
    sources = (DOCS / "examples" / example / "src").rglob("*.py")
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources)
    assert count < 360
