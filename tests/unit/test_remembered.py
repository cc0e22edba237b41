"""Unchanged data is recognised without reading it, and whatever changes is noticed."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from data_plans import SilentReporter, caption, data_plan, generator_plan, new_image, reference_set, target_set

import difftrain
from difftrain.data.samples import remembered, scan_sets
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.scanning import image_index
from difftrain_conditioning_generators.superresolution import Superresolution


@pytest.fixture
def plan(tmp_path):
    for name in "abc":
        caption(new_image(tmp_path / "edits" / f"{name}.png", seed=ord(name)), name)
        new_image(tmp_path / "references" / f"{name}.png", seed=ord(name) + 100)
    return data_plan(tmp_path, target_set(tmp_path, references=("references",)), reference_set(tmp_path))


def prepared(plan):
    """Return what the plan gives, and whether the data was scanned for it."""
    reporter = SilentReporter()
    data = prepare_samples(plan, reporter=reporter)
    return data, any(name.startswith("scan ") for name in reporter.phases)


def content(data):
    """Return everything but what was read now."""
    return list(data.samples), list(data.held_out), data.findings, data.summary()["datasets"], data.scanned


def test_unchanged_data_gives_equal_samples_and_is_not_scanned_again(plan):
    first, scanned = prepared(plan)
    assert scanned
    again, scanned = prepared(plan)
    assert not scanned
    assert content(again) == content(first)
    assert (again.hashed, again.captions_read, again.made) == (0, 0, 0)


CHANGES = {
    "an image with other bytes": lambda root: new_image(root / "edits" / "a.png", seed=9),
    "an image of the same size and another time": lambda root: os.utime(root / "edits" / "a.png", ns=(1, 1)),
    "another caption": lambda root: (root / "edits" / "b.txt").write_text("other words"),
    "a new image": lambda root: [
        caption(new_image(root / "edits" / "d.png", seed=1), "d"),
        new_image(root / "references" / "d.png", seed=2),
    ],
    "an image less": lambda root: [(root / name / "c.png").unlink() for name in ("edits", "references")],
    "another reference": lambda root: new_image(root / "references" / "a.png", (192, 128), seed=3),
    "a file of another kind": lambda root: (root / "edits" / "notes.md").write_text("notes"),
    "a new folder": lambda root: (root / "edits" / "more").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_in_the_folders_is_noticed(plan, tmp_path, change):
    prepared(plan)
    change(tmp_path)
    changed, scanned = prepared(plan)
    assert scanned
    fresh = replace(plan, index_path=tmp_path / "fresh" / "index.sqlite")
    assert content(changed) == content(prepared(fresh)[0])


def test_other_options_give_other_samples(plan):
    first, _ = prepared(plan)
    edits, references = plan.datasets
    smaller = replace(plan, datasets=(replace(edits, rules=replace(edits.rules, resolution=32.0)), references))
    other, scanned = prepared(smaller)
    assert scanned
    assert list(other.samples) != list(first.samples)
    assert not prepared(plan)[1], "both are remembered"


def test_where_a_run_writes_matters_only_if_it_is_in_the_data(plan, tmp_path):
    elsewhere = replace(plan, written_folders={"output_dir": tmp_path / "out1"})
    prepared(elsewhere)
    assert not prepared(replace(plan, written_folders={"output_dir": tmp_path / "out2"}))[1]
    inside = tmp_path / "edits" / "out"
    caption(new_image(inside / "z.png", seed=7), "z")
    new_image(tmp_path / "references" / "out" / "z.png", seed=8)
    data, scanned = prepared(elsewhere)
    assert scanned
    assert len(data.samples) == 4
    data, scanned = prepared(replace(plan, written_folders={"output_dir": inside}, datasets=(
        replace(plan.datasets[0], config=plan.datasets[0].config.model_copy(update={"on_missing": "skip"})),
        plan.datasets[1],
    )))  # fmt: skip
    assert scanned
    assert len(data.samples) == 3
    assert len(prepared(elsewhere)[0].samples) == 4


def test_changed_code_of_a_plugin_scans_again(plan, monkeypatch, tmp_path):
    prepared(plan)
    package = tmp_path / "program"
    package.mkdir()
    (package / "pairing.py").write_text("1")
    used = remembered._code(plan)
    assert str(Path(difftrain.__file__).parent) in used
    assert any("kontext" in folder for folder in used)
    monkeypatch.setattr(remembered, "_code", lambda plan: {**used, str(package): "**/*.py"})
    assert prepared(plan)[1]
    assert not prepared(plan)[1]
    (package / "pairing.py").write_text("22")
    assert prepared(plan)[1]


def test_a_deleted_or_damaged_index_means_reading_again(plan):
    prepared(plan)
    plan.index_path.unlink()
    data, scanned = prepared(plan)
    assert (scanned, data.hashed) == (True, 6)
    plan.index_path.write_bytes(b"\0" * 4096)
    data, scanned = prepared(plan)
    assert (scanned, data.hashed) == (True, 6)
    assert any("rebuilt" in note for note in data.notes)
    assert not any("rebuilt" in note for note in prepared(plan)[0].notes)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"not an archive at all"], ids=["empty", "cut", "other"])
def test_a_damaged_memory_is_made_again(plan, damage):
    first, _ = prepared(plan)
    (file,) = (plan.index_path.parent / remembered.FOLDER).iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage)
    again, scanned = prepared(plan)
    assert scanned
    assert content(again) == content(first)
    for place in range(0, len(whole), 701):
        flipped = bytearray(whole)
        flipped[place] ^= 255
        file.write_bytes(flipped)
        assert content(prepared(plan)[0]) == content(first), place


def test_what_changes_while_data_is_scanned_is_noticed_at_the_next_start(plan, tmp_path, monkeypatch):
    read_all = image_index.read_all

    def read_and_change(images, *, decode):
        facts = read_all(images, decode=decode)
        (tmp_path / "edits" / "a.txt").write_text("changed meanwhile")
        return facts

    monkeypatch.setattr(image_index, "read_all", read_and_change)
    prepared(plan)
    monkeypatch.undo()
    data, scanned = prepared(plan)
    assert scanned
    assert data.samples[0].captions == ("changed meanwhile",)


def test_what_comes_after_the_listing_is_noticed_at_the_next_start(plan, tmp_path, monkeypatch):
    begin_scan = scan_sets.begin_scan

    def begin_and_add(dataset, index, *, written):
        begun = begin_scan(dataset, index, written=written)
        if dataset.id == "edits":
            CHANGES["a new image"](tmp_path)
        return begun

    monkeypatch.setattr(scan_sets, "begin_scan", begin_and_add)
    assert len(prepared(plan)[0].samples) == 3
    monkeypatch.undo()
    data, scanned = prepared(plan)
    assert scanned
    assert len(data.samples) == 4


def test_images_that_generators_make_are_looked_for_each_time(tmp_path):
    caption(new_image(tmp_path / "edits" / "a.png"), "red")
    plan = data_plan(tmp_path, target_set(tmp_path, generators=[generator_plan(tmp_path, Superresolution())]))
    data, _ = prepared(plan)
    made = data.samples[0].choices[0].references[0].record.image.path
    made.unlink()
    assert prepared(plan)[0].made == 1
    assert made.exists()


def test_only_the_newest_few_are_kept(plan, monkeypatch):
    monkeypatch.setattr(remembered, "_MOST_FILES", 2)
    edits, references = plan.datasets
    for resolution in (32.0, 48.0, 64.0):
        prepared(
            replace(plan, datasets=(replace(edits, rules=replace(edits.rules, resolution=resolution)), references))
        )
    assert len(list((plan.index_path.parent / remembered.FOLDER).iterdir())) == 2


def test_a_cache_that_cannot_be_written_stops_nothing(plan):
    (plan.index_path.parent).mkdir(parents=True, exist_ok=True)
    (plan.index_path.parent / remembered.FOLDER).write_text("a file where the folder should be")
    first, _ = prepared(plan)
    again, scanned = prepared(plan)
    assert scanned
    assert content(again) == content(first)
