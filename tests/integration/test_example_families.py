"""The packages of docs/examples pass their own tests, each in a process that has it installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from example_packages import EXAMPLES, environment_with


@pytest.mark.parametrize(
    "example",
    ["difftrain-csv-tracker", "difftrain-instruct-pix2pix", "difftrain-qwen-image-edit", "difftrain-tar"],
)
def test_the_tests_of_an_example_pass(example, tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLES / example)]
    result = subprocess.run(
        [*command, str(EXAMPLES / example / "tests")],
        cwd=tmp_path,
        env=environment_with(example, tmp_path / "installed"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
