"""The benchmarks fit the program: names that they import exist, and the one that needs no model runs."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_what_a_benchmark_imports_is_there(file):
    used = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in used if node.module and node.module.startswith("difftrain")]
    for node in ours:
        module = importlib.import_module(node.module)
        assert [name.name for name in node.names if not hasattr(module, name.name)] == [], node.module


def test_a_scan_is_measured_in_all_its_parts(tmp_path):
    command = [sys.executable, BENCHMARKS / "scan.py", tmp_path / "work", "--pairs", "12", "--json", tmp_path / "out"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "out").read_text())
    assert {part: result["samples"] for part, result in results.items()} == dict.fromkeys(
        ("first", "unchanged", "check", "plan"), 12
    )
    assert "| epoch plan |" in run.stdout


def test_one_adapter_is_compared_over_bases_of_other_precisions(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    command = ["--small", "--pixels", "64", "--steps", "6", "--learning_rate", "1e-2"]
    command += ["--precisions", "no_change", "int8-quanto", "int4-quanto"]
    importlib.import_module("base_precisions").main([*command, "--json", str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out").read_text())
    assert list(rows) == ["no_change", "int8-quanto"]
    for name, row in rows.items():
        assert row["effect"] > 0.001
        assert row["fixed_loss"][1] < row["fixed_loss"][0]
        found = {base: [both[part]["difference"] for part in both] for base, both in row["bases"].items()}
        assert found[name] == [0, 0]
        (near,) = {"no_change", "int8-quanto"} - {name}
        assert 0.001 < found[near][0] < 0.5 * found["int4-quanto"][0] < 0.5
        assert 0.001 < found[near][1] < 0.8 * found["int4-quanto"][1] < 0.8
        assert row["bases"][near]["effect"]["cosine"] > 0.99
    assert "| int4-quanto |" in capsys.readouterr().out
