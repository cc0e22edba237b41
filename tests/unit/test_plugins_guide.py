"""docs/plugins.md says what is true: its example runs, and its table lists every hook."""

from __future__ import annotations

import importlib.util
import inspect
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from difftrain import contracts
from difftrain.plugins import hookspecs
from difftrain.testing import check_generator

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path):
    """The guide's first Python block, imported from a file as a user would save it."""
    path = tmp_path / "posterize.py"
    path.write_text(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL).group(1), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("posterize", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_a_generator_that_holds_what_every_one_must(example):
    (generator,) = example.difftrain_conditioning_generators()
    check_generator(generator(bits=3))


def test_the_example_draws_what_it_says(example):
    drawn = example.Posterize(bits=1).generate(Image.new("RGB", (4, 4), (200, 100, 0)), random.Random(0))
    assert drawn.getpixel((0, 0)) == (128, 0, 0)


def test_the_table_lists_exactly_the_hooks_that_exist():
    table = "\n".join(line for line in GUIDE.splitlines() if line.startswith("| `difftrain_"))
    hooks = {name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("difftrain_")}
    assert set(re.findall(r"`(difftrain_\w+)`", table)) == hooks


def test_the_table_names_contracts_that_exist():
    assert [name for name in re.findall(r"\| `([A-Z]\w+)` classes", GUIDE) if not hasattr(contracts, name)] == []
