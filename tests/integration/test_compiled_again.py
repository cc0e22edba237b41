"""A second run uses the code that the first one compiled, with our operations, and never that of another kernel."""

import json
import shutil

import pytest
from forked_runs import ForkedRun

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
EIGHT_BIT, CUDNN = "auto-keep-int8", "cudnn-recompute-plain"
KERNELS = ("flash-recompute-plain", "math-recompute-plain", CUDNN)


def compile_blocks(cache, *kinds):
    """Return what a new process found in the caches, by kind of block."""
    run = ForkedRun(cache, (cache, *kinds), "compile_block:main")
    out, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    return json.loads(out.splitlines()[-1])


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
