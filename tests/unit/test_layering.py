"""The structure that docs and reviewers rely on, checked by import-linter and by a search for model names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("core", "plugins/flux", "plugins/flux_kontext", "plugins/conditioning_generators")
MODEL_NAMES = re.compile(rb"flux|kontext", re.IGNORECASE)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of ``root/pyproject.toml`` on the packages below ``root``, whatever is installed."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    path = os.pathsep.join(str(root / source) for source in SOURCES)
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copied_sources(tmp_path):
    """Copy all packages, to break a rule in the copy."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in SOURCES:
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__", "*.jpg"))
    return tmp_path


def test_imports_follow_the_layers():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core/difftrain/types/sizes.py", "from difftrain import contracts", "Layers of the core"),
        ("core/difftrain/data/entries/data_plan.py", "import difftrain.training", "Layers of the core"),
        ("core/difftrain/bundled.py", "import difftrain_flux", "The core knows no plugin"),
        (
            "plugins/flux_kontext/difftrain_flux_kontext/__init__.py",
            "import difftrain_flux",
            "do not import each other",
        ),
        ("plugins/flux/difftrain_flux/__init__.py", "from difftrain.data import plan", "import only what anyone may"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(copied_sources, module, line, contract):
    with (copied_sources / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(copied_sources)
    assert result.returncode == 1
    assert re.search(rf"{contract}.* BROKEN", result.stdout), result.stdout


def test_the_core_names_no_model():
    files = [path for path in (ROOT / "core").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    named = [str(path) for path in files if MODEL_NAMES.search(str(path.relative_to(ROOT)).encode())]
    written = [str(path) for path in files if MODEL_NAMES.search(path.read_bytes())]
    assert named + written == []
