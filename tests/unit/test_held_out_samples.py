"""Held-out samples are prepared like all others and never get into a batch."""

from dataclasses import replace

import pytest
from config_runs import plan, run_values
from data_plans import SilentReporter, caption, data_plan, new_image, reference_set, target_set

from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.startup.run_length import rounds_of


def fill(root, folder, count, first_seed):
    for index in range(count):
        caption(new_image(root / folder / f"{index}.png", seed=first_seed + index), f"edit {index}")


@pytest.fixture
def prepared(tmp_path):
    fill(tmp_path, "edits", 3, 0)
    fill(tmp_path, "kept", 2, 100)
    for index in range(2):
        new_image(tmp_path / "references" / f"{index}.png", seed=200 + index)
    kept = replace(target_set(tmp_path, "kept", references=["references"]), held_out=True)
    datasets = (target_set(tmp_path), kept, reference_set(tmp_path))
    return prepare_samples(data_plan(tmp_path, *datasets), reporter=SilentReporter())


def test_held_out_samples_stand_apart_from_those_that_are_trained_on(prepared):
    assert {sample.dataset_id for sample in prepared.samples} == {"edits"}
    assert {sample.dataset_id for sample in prepared.held_out} == {"kept"}


def test_one_reference_folder_for_a_trained_and_a_held_out_set_leaves_only_strangers_over(tmp_path):
    fill(tmp_path, "edits", 2, 0)
    caption(new_image(tmp_path / "kept" / "2.png", seed=100), "edit 2")
    for name in ("0", "1", "2", "stranger"):
        new_image(tmp_path / "references" / f"{name}.png", seed=200 + len(name))
    kept = replace(target_set(tmp_path, "kept", references=["references"]), held_out=True)
    datasets = (target_set(tmp_path, references=["references"]), kept, reference_set(tmp_path))
    notes = prepare_samples(data_plan(tmp_path, *datasets), reporter=SilentReporter()).notes
    about = [note for note in notes if "have no target image" in note]
    assert about == ["dataset 'references': 1 references have no target image: stranger.png"]


def test_held_out_samples_keep_their_references(prepared):
    assert [len(sample.choices[0].references) for sample in prepared.held_out] == [1, 1]


def test_summary_counts_held_out_samples_by_themselves(prepared):
    summary = prepared.summary()
    assert (summary["samples"], summary["held_out_samples"]) == (3, 2)
    assert {name: (facts["samples"], facts["held_out"]) for name, facts in summary["datasets"].items()} == {
        "edits": (3, False),
        "kept": (2, True),
        "references": (0, False),
    }


def test_images_that_are_held_out_and_trained_on_are_noted_with_their_names(tmp_path):
    fill(tmp_path, "edits", 3, 0)
    fill(tmp_path, "kept", 3, 1)  # kept/0 and kept/1 are edits/1 and edits/2
    plan = data_plan(tmp_path, target_set(tmp_path), replace(target_set(tmp_path, "kept"), held_out=True))
    (note,) = prepare_samples(plan, reporter=SilentReporter()).notes
    assert note == (
        "dataset 'kept': 2 of 3 held-out images are trained on too, so they show nothing about unseen images: "
        "0.png = edits/1.png, 1.png = edits/2.png"
    )


def test_no_batch_of_an_epoch_holds_a_held_out_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "edits", 5, 0)
    fill(tmp_path, "kept", 4, 100)
    common = {"resolution": 128, "repeats": 1}
    datasets = [{"id": name, "instance_data_dir": name, **common} for name in ("edits", "kept")]
    planned = plan(
        run_values(eval_dataset_id="kept", train_batch_size=2, num_train_epochs=2, max_train_steps=0), datasets
    )
    data = prepare_samples(planned.data, reporter=SilentReporter())
    steps = rounds_of(planned, data.samples).steps()
    shown = [visit.name for step in steps for batch in step[0].batches for visit in batch]
    assert sorted(shown) == sorted(4 * [f"edits/{index}" for index in range(5)])
