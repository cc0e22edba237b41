"""Images that would be encoded larger than the flavour allows fail the check."""

import json

import pytest

FLAVOUR = """
from typing import ClassVar

from difftrain import hookimpl
from difftrain.testing import TinyEditFlavour, TinyFamily


class Small(TinyEditFlavour):
    name: ClassVar[str] = "small"
    max_pixels: ClassVar[int | None] = 64 * 64


@hookimpl
def difftrain_model_families():
    return (TinyFamily,)


@hookimpl
def difftrain_model_flavours():
    return (Small,)
"""


@pytest.fixture
def check(command, edit_pairs):
    """Check 64x64 edits with references of another resolution."""

    def run(resolution, sizes):
        (edit_pairs.folder / "small.py").write_text(FLAVOUR)
        datasets = edit_pairs(count=3, conditioning_type="reference_loose", sizes=sizes)
        edits, references = json.loads(datasets.read_text())
        datasets.write_text(json.dumps([edits, {**references, "resolution": resolution}]))
        return command(
            "check", "--plugins", "./small.py", "--model", "tiny-test", "--flavour", "small",
            "--aspect_bucket_alignment", 8, "--data_backend_config", datasets, "--max_train_steps", 1,
        )  # fmt: skip

    return run


def test_references_as_large_as_the_model_can_take_are_good(check):
    ended = check(64, [(64, 64)])
    assert ended.status == 0, ended.err


def test_larger_references_are_named_with_their_sizes(check):
    ended = check(72, [(64, 64), (64, 128)])
    assert ended.status == 2
    assert (
        "dataset 'references': 3 of 3 images would be encoded larger than flavour 'small' can take, 4,096 pixels: "
        "0000.png (72x72), 0001.png (48x104), 0002.png (72x72)"
    ) in ended.err
