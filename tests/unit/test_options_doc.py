"""docs/options.md is what tools/make_options_doc.py writes, and names every option."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar

import pytest

from difftrain.config.options import Options
from difftrain.plugins.discovery import load_plugins
from difftrain.steps.losses import MeanSquaredError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "make_options_doc.py"
PAGE = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
PLUGINS = load_plugins(only=["difftrain"])


@pytest.fixture(scope="module")
def document():
    """The tool's function."""
    spec = importlib.util.spec_from_file_location("make_options_doc", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.options_document


@pytest.fixture(scope="module")
def written(document):
    return document(PLUGINS.registry)


def test_the_file_is_current(written):
    assert written == PAGE, f"run `python {TOOL.relative_to(ROOT)}`"


def test_every_key_of_both_files_is_listed():
    keys = {*PLUGINS.run_schema.model_fields, *PLUGINS.dataset_schema.model_fields}
    assert [key for key in sorted(keys) if f"\n| `{key}` |" not in PAGE] == []


class Weight(Options):
    loss_weight: float = 1.0
    """What the loss of each sample is multiplied by."""


class Weighted(MeanSquaredError):
    name: ClassVar[str] = "weighted"
    dataset_options: ClassVar[type[Options]] = Weight


def test_dataset_keys_of_a_loss_are_listed_with_it(document):
    registry = load_plugins(only=["difftrain"]).registry
    registry.add("loss", Weighted, "test 1.0")
    section = document(registry).split("### A target set, with `loss_type` of the run: `weighted`")[1]
    assert "| `loss_weight` | number | `1.0` | What the loss of each sample is multiplied by. |" in section
