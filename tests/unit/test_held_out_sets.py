"""Which datasets are held out from training, and the messages when that cannot be."""

from __future__ import annotations

import pytest
from config_runs import error_of, plan, reference_set, run_values, target_set


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def other(name="other", **changes):
    return target_set(id=name, instance_data_dir=name, **changes)


def held_out(run):
    return [dataset.id for dataset in run.data.datasets if dataset.held_out]


@pytest.mark.parametrize("written", ["other", ["other"], '["other"]'])
def test_a_named_set_is_held_out_whatever_its_type(written):
    run = plan(run_values(eval_dataset_id=written), [target_set(), other()])
    assert held_out(run) == ["other"]
    assert run.notes == ()


def test_several_sets_are_named_in_one_flag():
    assert held_out(plan(datasets=[target_set(), other("a"), other("b")], eval_dataset_id="a,b")) == ["a", "b"]


@pytest.mark.parametrize("written", [..., None, "", "none", []])
def test_without_names_all_sets_of_type_eval_are_held_out(written):
    datasets = [target_set(), other("a", dataset_type="eval"), other("b", dataset_type="eval")]
    assert held_out(plan(run_values(eval_dataset_id=written), datasets)) == ["a", "b"]


def test_with_names_other_sets_of_type_eval_are_left_unused_with_their_references():
    datasets = [
        target_set(),
        other("a"),
        other("b", dataset_type="eval", conditioning_data="refs"),
        reference_set(source_dataset_id="b"),
    ]
    run = plan(run_values(eval_dataset_id="a"), datasets)
    assert [dataset.id for dataset in run.data.datasets] == ["edits", "a"]
    assert run.notes == (
        "dataset 'b': not used, dataset_type eval keeps it out of training and eval_dataset_id does not name it",
    )


def test_a_held_out_set_has_references_and_generators_as_others_have():
    blur = {"type": "superresolution"}
    datasets = [target_set(), other(dataset_type="eval", conditioning_data="refs", conditioning=blur), reference_set()]
    dataset = plan(datasets=datasets).data.by_id("other")
    assert (dataset.references, len(dataset.generators)) == (("refs",), 1)


def test_an_unknown_name_gets_the_nearest_id():
    message = error_of(run_values(eval_dataset_id="othr"), [target_set(), other()])
    assert message == "eval_dataset_id names 'othr', but no enabled dataset has that id; did you mean 'other'?"


def test_a_reference_set_is_not_held_out_by_itself():
    message = error_of(run_values(eval_dataset_id="refs"), [target_set(conditioning_data="refs"), reference_set()])
    assert message == (
        "eval_dataset_id names 'refs', which is a reference set\n"
        "hint: name the target set that it belongs to: edits; its references are held out with it"
    )


def test_type_eval_on_a_reference_set_is_an_error():
    message = error_of(datasets=[target_set(conditioning_data="refs"), reference_set(dataset_type="eval")])
    assert message.startswith("dataset 'refs': dataset_type eval belongs on a target set")


@pytest.mark.parametrize(
    ("named", "datasets"),
    [
        ("edits", [target_set()]),
        (None, [target_set(dataset_type="eval")]),
        ("edits", [target_set(), other(dataset_type="eval")]),
    ],
)
def test_nothing_left_to_train_on_is_an_error(named, datasets):
    message = error_of(run_values(eval_dataset_id=named), datasets)
    assert message.startswith(
        "datasets.json: every enabled target set is held out, so there is nothing to train on: edits"
    )


def test_problems_of_held_out_sets_are_reported_with_all_others():
    message = error_of(
        run_values(eval_dataset_id=["nobody"], optimizer="adamv"), [target_set(caption_strategy="texts")]
    )
    assert message.startswith("3 problems")


def test_sampling_options_of_a_held_out_set_are_noted():
    run = plan(datasets=[target_set(), other(dataset_type="eval", repeats=3)])
    assert run.notes == ("dataset 'other': repeats: no effect on a held-out set, it is not trained on",)


def test_a_held_out_set_that_no_validation_looks_at_is_noted():
    (note,) = plan(run_values(validation_steps=0), [target_set(), other(dataset_type="eval")]).notes
    assert note == "held out but never validated, since validation_steps is 0: other"
