"""The packages of docs/examples pass their own tests, each in a process that has it installed and no other."""

from __future__ import annotations

import pytest
from forked_runs import ForkedRun

from example_packages import EXAMPLES, environment_with


@pytest.mark.parametrize(
    "example",
    [
        "difftrain-csv-tracker",
        "difftrain-focus",
        "difftrain-instruct-pix2pix",
        "difftrain-qwen-image-edit",
        "difftrain-tar",
    ],
)
def test_the_tests_of_an_example_pass(example, tmp_path):
    flags = ("-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLES / example)
    environment = environment_with(example, tmp_path / "installed")
    run = ForkedRun(tmp_path, (*flags, EXAMPLES / example / "tests"), "pytest:console_main", **environment)
    out, err = run.communicate()
    assert run.returncode == 0, out + err
