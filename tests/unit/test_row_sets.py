"""Entries of a data source that gives references: the meaning of their config."""

import json

import pytest
from config_runs import reference_set, run_values, target_set

from difftrain.planning.run_plan import plan_run
from difftrain.plugins.discovery import load_plugins

SHELF = """
from typing import ClassVar

from difftrain import DataSource, hookimpl


class Shelf(DataSource):
    name: ClassVar[str] = "shelf"
    gives_references: ClassVar[bool] = True

    shelf: str = ""

    def list_images(self):
        return ()


@hookimpl
def difftrain_data_sources():
    return (Shelf,)
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def planned(tmp_path):
    """Plan a run with a source of rows; return the plans of its datasets by id."""
    (tmp_path / "shelf.py").write_text(SHELF)

    def planned(*datasets, run=None, without=()):
        (tmp_path / "config.json").write_text(json.dumps(run or run_values()))
        (tmp_path / "datasets.json").write_text(json.dumps(datasets))
        plugins = load_plugins(files=[tmp_path / "shelf.py"], disabled=without)
        found = plan_run(tmp_path / "config.json", {}, plugins=plugins)
        return {one.id: one for one in found.data.datasets}

    return planned


def rows(**changes):
    return target_set(id="rows", type="shelf", instance_data_dir=..., caption_strategy=..., **changes)


def test_rows_are_a_target_set_of_strict_references_unless_the_entry_says_otherwise(planned):
    found = planned(
        rows(), rows() | {"id": "loose", "conditioning_type": "reference_loose", "reference_resolution": "same"}
    )
    assert not found["rows"].is_reference
    assert found["rows"].row_pairing.name == "reference_strict"
    assert not found["loose"].is_reference
    assert found["loose"].row_pairing.reference_resolution == "same"


@pytest.mark.parametrize("changes", [{}, {"dataset_type": "conditioning"}])
def test_rows_that_a_target_set_names_are_its_reference_set(planned, changes):
    refs = rows(conditioning_type="reference_loose", **changes) | {"id": "refs"}
    found = planned(target_set(conditioning_data="refs"), refs)
    assert found["refs"].pairing.name == "reference_loose"
    assert found["refs"].row_pairing is None


def test_rows_may_be_held_out(planned):
    found = planned(target_set(), rows(dataset_type="eval", conditioning_type="reference_strict"))
    assert found["rows"].held_out


def test_other_sources_are_what_they_were(planned):
    found = planned(target_set(conditioning_data="refs"), reference_set())
    assert found["edits"].row_pairing is None
    assert found["refs"].is_reference


@pytest.mark.parametrize(
    ("changes", "source_first"),
    [({}, True), ({"caption_strategy": "filename"}, False), ({"caption_strategy": None}, False)],
)
def test_captions_of_the_source_are_taken_unless_the_entry_names_a_strategy(planned, changes, source_first):
    assert planned(rows() | changes)["rows"].takes_source_captions is source_first


def test_a_reference_set_takes_no_captions_of_its_source(planned):
    refs = rows(conditioning_type="reference_loose") | {"id": "refs"}
    found = planned(target_set(conditioning_data="refs"), refs)
    assert not found["refs"].takes_source_captions


def test_rows_need_no_pairing_that_is_not_installed(planned):
    found = planned(rows(), run=run_values(model_flavour="dev"), without=["flux_kontext"])
    assert found["rows"].row_pairing is None
