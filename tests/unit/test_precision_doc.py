"""docs/precision.md is what tools/make_precision_doc.py writes, and says what the config's checks say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import rounding_plugin
from difftrain.plugins.discovery import load_plugins

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "make_precision_doc.py"
PAGE = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
PLUGINS = load_plugins(only=["difftrain"])


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_precision_doc", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_current(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without a run file
    assert tool.precision_document(PLUGINS) == PAGE, f"run `python {TOOL.relative_to(ROOT)}`"


def test_every_precision_has_a_row_in_both_tables():
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)
    names = list(PLUGINS.registry.all("quantizer"))
    assert rows == [*names, "no_change", *names]


def test_a_row_says_no_where_the_config_says_no(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "| `int8-quanto` | yes | yes | yes | yes | yes |  |" in PAGE
    plugins = load_plugins(only=["difftrain"], files=[rounding_plugin.__file__])
    nearest = "int4-quanto, nf4-bnb, fp4-bnb"
    assert f"| `own-4bit` | no | yes | yes | no | no | {nearest} |" in tool.precision_document(plugins)
    assert tool.clashes(plugins, "own-8bit", "blocks_to_swap", "auto") == []
    assert len(tool.clashes(plugins, "own-8bit", "blocks_to_swap", "3")) == 1
