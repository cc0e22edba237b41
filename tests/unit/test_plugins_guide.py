"""docs/plugins.md says what is true: its example runs, and its table lists every hook."""

from __future__ import annotations

import base64
import inspect
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from data_plans import SilentReporter, data_plan, edit_set, picture
from PIL import Image

from difftrain import contracts
from difftrain.data.extras import stack_extras
from difftrain.data.prepare import prepare_samples
from difftrain.plugins import hookspecs
from difftrain.plugins.load import load_plugins
from difftrain.testing import check_generator
from difftrain_flux_kontext.pairing import ReferenceStrict

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")


@pytest.fixture
def posterize(tmp_path):
    """The class in the guide's first Python block, loaded from a file as a user would save it."""
    path = tmp_path / "posterize.py"
    path.write_text(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL).group(1), encoding="utf-8")
    return load_plugins(files=[path]).registry.find("generator", "posterize")


def test_the_example_holds_what_every_generator_must(posterize):
    check_generator(posterize(bits=3))


def test_the_example_draws_what_it_says(posterize):
    drawn = posterize(bits=1).generate(Image.new("RGB", (4, 4), (200, 100, 0)), random.Random(0))
    assert drawn.getpixel((0, 0)) == (128, 0, 0)


@pytest.fixture
def weighted_loss(tmp_path):
    """The loss of the guide, loaded from a file."""
    (block,) = (text for text in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "class WeightedLoss" in text)
    path = tmp_path / "weighted.py"
    path.write_text(block, encoding="utf-8")
    return load_plugins(files=[path]).registry.find("loss", "weighted")


def test_the_guides_loss_weights_samples_as_it_says(weighted_loss):
    loss, prediction = weighted_loss(), torch.ones(2, 1, 2, 2)
    given = [loss.extras(None, weighted_loss.dataset_options(loss_weight=weight)) for weight in (2.0, 0.5)]
    extras = stack_extras(given, ["a", "b"])
    noisy = SimpleNamespace(velocity=torch.zeros(2, 1, 2, 2), target=torch.zeros(2, 1, 2, 2))
    assert loss.compute(prediction, noisy, SimpleNamespace(extras=extras)).tolist() == [2.0, 0.5]


def test_the_guides_data_source_gives_pairs(tmp_path):
    (block,) = (text for text in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "class JsonImages" in text)
    (tmp_path / "rows.py").write_text(block, encoding="utf-8")
    source = load_plugins(files=[tmp_path / "rows.py"]).registry.find("data source", "json")
    image, reference = (base64.b64encode(png(tmp_path, seed)).decode() for seed in (1, 2))
    rows = [{"id": name, "image": image, "caption": f"edit {name}", "reference": reference} for name in "ba"]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    plan = replace(
        edit_set(tmp_path),
        source=source(json_file=tmp_path / "pairs.json"),
        takes_source_captions=True,
        row_pairing=ReferenceStrict(),
    )
    prepared = prepare_samples(data_plan(tmp_path, plan), reporter=SilentReporter())
    shown = [(one.target.record.key, one.captions, len(one.choices[0].references)) for one in prepared.samples]
    assert shown == [("a", ("edit a",), 1), ("b", ("edit b",), 1)]


def png(folder, seed):
    return picture(folder / "x.png", seed=seed).read_bytes()


def test_the_table_lists_exactly_the_hooks_that_exist():
    table = "\n".join(line for line in GUIDE.splitlines() if line.startswith("| `difftrain_"))
    hooks = {name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("difftrain_")}
    assert set(re.findall(r"`(difftrain_\w+)`", table)) == hooks


def test_the_table_names_contracts_that_exist():
    assert [name for name in re.findall(r"\| `([A-Z]\w+)` classes", GUIDE) if not hasattr(contracts, name)] == []
