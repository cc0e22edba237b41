"""docs/examples/kontext-24gb holds config files for users to copy: they must plan unchanged, and match the README."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import json5

from difftrain.planning.run_plan import plan_run

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "examples" / "kontext-24gb"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_copied_files_plan_without_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for file in FILES.glob("*.json"):
        shutil.copy(file, "config")
    plan = plan_run(None, {})
    assert (plan.family.name, plan.flavour.name) == ("flux", "kontext")
    assert plan.quantizer is not None
    assert plan.config.gradient_checkpointing
    assert [dataset.id for dataset in plan.data.datasets] == ["edits", "references"]
    assert plan.notes == ()


def test_readme_shows_the_same_files():
    shown = re.findall(r"^```jsonc\n// config/(\S+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    first = {}
    for name, text in shown:
        first.setdefault(name, text)
    for name in ("config.json", "multidatabackend.json"):
        assert json5.loads(first[name]) == json5.loads((FILES / name).read_text(encoding="utf-8"))
