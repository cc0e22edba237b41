"""A flavour that needs references refuses images without them, before any weight is loaded."""

import json

import pytest

PLUGIN = """
from pathlib import Path
from typing import ClassVar

from difftrain import DataSource, LocalImage, hookimpl
from difftrain.testing import TinyEditFlavour, TinyFamily


class Needy(TinyEditFlavour):
    name: ClassVar[str] = "needy"
    needs_reference: ClassVar[bool] = True


class Plain(DataSource):
    name: ClassVar[str] = "plain-rows"
    gives_references: ClassVar[bool] = True

    rows_folder: Path

    def list_images(self):
        return [LocalImage.at(path) for path in sorted(self.rows_folder.glob("*.png"))]


@hookimpl
def difftrain_data_sources():
    return (Plain,)


@hookimpl
def difftrain_model_families():
    return (TinyFamily,)


@hookimpl
def difftrain_model_flavours():
    return Needy, TinyEditFlavour
"""
PROBLEM = "dataset 'edits': has no references, but flavour 'needy' of 'tiny-test' needs one for every image"


@pytest.fixture
def start(command, edit_pairs):
    """Check or train with some entries of a dataset list, which a function may change."""

    def run(*words, references=None, flavour="needy", change=lambda entries: entries, **edits):
        (edit_pairs.folder / "needy.py").write_text(PLUGIN)
        datasets = edit_pairs(count=3, references=references, **edits)
        datasets.write_text(json.dumps(change(json.loads(datasets.read_text()))))
        return command(
            *words, "--plugins", "./needy.py", "--model", "tiny-test", "--flavour", flavour, "--validation_steps", 0,
            "--aspect_bucket_alignment", 8, "--data_backend_config", datasets, "--max_train_steps", 1,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("words", [["check"], []])
def test_images_alone_are_an_error_that_names_both_ways_out(start, words):
    ended = start(*words)
    assert ended.status == 2
    assert PROBLEM in ended.err
    assert (
        "hint: name a reference set in conditioning_data, or generate references with conditioning, "
        "or set model_flavour; those that train without: edit"
    ) in ended.err
    assert "scan" not in ended.err, "it is said before any image is read"


def test_other_flavours_train_on_images_alone(start):
    assert start("check", flavour="edit").status == 0


@pytest.mark.parametrize("given", [{"references": "refs"}, {"conditioning": {"type": "superresolution"}}])
def test_reference_sets_and_generators_are_references(start, given):
    ended = start("check", **given)
    assert ended.status == 0, ended.err


def test_held_out_images_need_references_too(start):
    def with_held_out(entries):
        plain = {key: value for key, value in entries[0].items() if key != "conditioning_data"}
        return [*entries, {**plain, "id": "seen", "dataset_type": "eval"}]

    ended = start("check", references="refs", change=with_held_out)
    assert ended.status == 2
    assert PROBLEM.replace("'edits'", "'seen'") in ended.err
    assert PROBLEM not in ended.err


def test_rows_that_bring_no_reference_are_named(start):
    def as_rows(entries):
        return [
            {"id": "rows", "type": "plain-rows", "rows_folder": "edits", "resolution": 64, "caption_strategy": None}
        ]

    ended = start("check", change=as_rows)
    assert ended.status == 2
    assert (
        "dataset 'rows': 3 of 3 images have no reference, but flavour 'needy' needs one for every image: 0000.png"
    ) in ended.err
    assert start("check", change=as_rows, flavour="edit").status == 0
