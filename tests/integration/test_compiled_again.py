"""A second run uses the code that the first one compiled, with our operations, and never that of another kernel."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
SCRIPT = Path(__file__).parent / "compile_block.py"


def compile_block(cache, attention="auto", activations="keep", precision="plain"):
    environment = {key: value for key, value in os.environ.items() if "CACHE_DIR" not in key}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(cache), attention, activations, precision],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One folder for all tests of this file: what they compile has to be told apart."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first_runs(cache):
    return {attention: compile_block(cache, attention, "recompute") for attention in ("flash", "math", "cudnn")}


def test_no_two_attention_kernels_share_a_graph(first_runs):
    for attention, seen in first_runs.items():
        assert seen["graphs"] == {"hit": 0, "miss": 2, "bypass": 0}, attention
        assert seen["traced"] == {"hit": 0, "miss": 1, "bypass": 0}, attention
        assert seen["gradient"] == pytest.approx(first_runs["math"]["gradient"], rel=1e-3, abs=1e-6)


def test_a_second_run_compiles_and_traces_nothing(cache, first_runs):
    again = compile_block(cache, "cudnn", "recompute")
    assert again["graphs"] == {"hit": 2, "miss": 0, "bypass": 0}
    assert again["traced"] == {"hit": 1, "miss": 0, "bypass": 0}
    assert again["gradient"] == first_runs["cudnn"]["gradient"]


def test_a_second_run_compiles_no_eight_bit_product(cache):
    first = compile_block(cache, precision="int8")
    again = compile_block(cache, precision="int8")
    assert first["graphs"] == {"hit": 0, "miss": 2, "bypass": 0}
    assert again["graphs"] == {"hit": 2, "miss": 0, "bypass": 0}
    assert again["traced"]["bypass"] == 1  # torch keeps the code of an autograd function, but not its trace
    assert again["gradient"] == first["gradient"]
