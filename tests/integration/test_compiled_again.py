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
EIGHT_BIT, CUDNN = "auto-keep-int8", "cudnn-recompute-plain"
KERNELS = ("flash-recompute-plain", "math-recompute-plain", CUDNN)


def compile_blocks(cache, *kinds):
    """Return what a new process found in the caches, by kind of block."""
    environment = {key: value for key, value in os.environ.items() if "CACHE_DIR" not in key}
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # each would be a process that imports torch
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(cache), *kinds],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Compile in one process, then again in another; all in one folder, since what they compile has to be told apart.

    The later process goes through the kinds in the same order, so that cuDNN's attention comes last.
    """
    cache = tmp_path_factory.mktemp("cache")
    return compile_blocks(cache, EIGHT_BIT, *KERNELS), compile_blocks(cache, EIGHT_BIT, CUDNN)


def test_no_two_attention_kernels_share_a_graph(runs):
    first, _ = runs
    for kernel in KERNELS:
        assert first[kernel]["graphs"] == {"hit": 0, "miss": 2, "bypass": 0}, kernel
        assert first[kernel]["traced"] == {"hit": 0, "miss": 1, "bypass": 0}, kernel
        assert first[kernel]["gradient"] == pytest.approx(first[KERNELS[1]]["gradient"], rel=1e-3, abs=1e-6)


def test_a_second_run_compiles_and_traces_nothing(runs):
    first, again = (run[CUDNN] for run in runs)
    assert again["graphs"] == {"hit": 2, "miss": 0, "bypass": 0}
    assert again["traced"] == {"hit": 1, "miss": 0, "bypass": 0}
    assert again["gradient"] == first["gradient"]


def test_a_second_run_compiles_no_eight_bit_product(runs):
    first, again = (run[EIGHT_BIT] for run in runs)
    assert first["graphs"] == {"hit": 0, "miss": 2, "bypass": 0}
    assert again["graphs"] == {"hit": 2, "miss": 0, "bypass": 0}
    assert again["traced"]["bypass"] == 1  # torch keeps the code of an autograd function, but not its trace
    assert again["gradient"] == first["gradient"]
