"""docs/options.md is what tools/make_options_doc.py writes, and names every option there is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from difftrain.plugins.load import load_plugins

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "make_options_doc.py"
PAGE = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
PLUGINS = load_plugins(only=["difftrain"])


@pytest.fixture(scope="module")
def written():
    spec = importlib.util.spec_from_file_location("make_options_doc", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.options_document(PLUGINS.registry)


def test_the_file_is_current(written):
    assert written == PAGE, f"run `python {TOOL.relative_to(ROOT)}`"


def test_every_key_of_both_files_is_listed():
    keys = {*PLUGINS.run_schema.model_fields, *PLUGINS.dataset_schema.model_fields}
    assert [key for key in sorted(keys) if f"\n| `{key}` |" not in PAGE] == []
