"""Which sets are trained on when, as far as the config tells."""

import pytest
from config_runs import error_of, pair, plan, reference_set, run_values, target_set

from difftrain.data.streaming.set_rules import USUAL, SetRules
from difftrain.startup.run_length import epoch_rules


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def two(first=None, second=None):
    return [target_set(**(first or {})), target_set(id="more", instance_data_dir="more", **(second or {}))]


def test_every_key_reaches_the_rules():
    fields = {
        "repeats": 2, "probability": 0.5, "train_batch_size": 3, "is_regularization_data": True,
        "timestep_sampling_offset": -0.5, "start_step": 2, "end_step": 9, "start_epoch": 3, "end_epoch": 4,
        "ignore_epochs": True,
    }  # fmt: skip
    rules = epoch_rules(plan(run_values(data_backend_sampling="uniform"), datasets=two({}, fields)))
    assert rules.of("more") == SetRules(
        repeats=2, probability=0.5, batch_size=3, regularises=True, noise_offset=-0.5, start_step=2, end_step=9,
        start_epoch=3, end_epoch=4, ignores_epochs=True,
    )  # fmt: skip
    assert rules.of("edits") == USUAL
    assert rules.evenly


def test_zero_is_from_the_start_and_without_an_end():
    zeros = dict.fromkeys(("start_step", "end_step", "start_epoch", "end_epoch", "train_batch_size"), 0)
    assert epoch_rules(plan(datasets=two(zeros))).of("edits") == USUAL


@pytest.mark.parametrize(
    ("sampling", "second", "notes"),
    [
        (
            "auto-weighting",
            False,
            ["dataset 'edits': ignore_epochs: no effect, data_backend_sampling is not \"uniform\""],
        ),
        ("uniform", False, []),
        (
            "uniform",
            True,
            [
                f"dataset {name!r}: ignore_epochs: no effect, there is no set that epochs wait for"
                for name in ("edits", "more")
            ],
        ),
    ],
)
def test_epochs_that_cannot_be_ignored_are_noted(sampling, second, notes):
    planned = plan(run_values(data_backend_sampling=sampling), two({"ignore_epochs": True}, {"ignore_epochs": second}))
    assert [note for note in planned.notes if "ignore_epochs" in note] == notes


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ({"start_step": 5, "end_step": 4}, {}, "end_step 4 is before start_step 5, so the set would never be used"),
        ({"start_epoch": 3, "end_epoch": 2}, {}, "end_epoch 2 is before start_epoch 3"),
        ({"start_step": 2}, {"start_epoch": 2}, "hint: let 'edits' start at once: remove its start_step"),
        ({"end_step": 3}, {"start_step": 5}, "no set takes part in step 4, but max_train_steps is 10: dataset 'edits'"),
        ({"end_step": 3}, {"start_step": 4, "end_step": 9}, "no set takes part in step 10"),
        ({"is_regularisation_data": True}, {"is_regularisation_data": True}, "every set to train on has"),
        ({"start_step": -1}, {}, "start_step must be at least 1, got -1"),
        ({"train_batch_size": "two"}, {}, "train_batch_size must be a whole number"),
        ({"timestep_sampling_offset": True}, {}, "timestep_sampling_offset must be a number"),
        ({"timestep_sampling_offset": 100}, {}, "timestep_sampling_offset must be at most 10"),  # it is no timestep
        ({"start_stepp": 1}, {}, "unknown key 'start_stepp'; did you mean 'start_step'?"),
    ],
)
def test_contradictions_are_errors(first, second, part):
    assert part in error_of(datasets=two(first, second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"end_step": 3}, {"start_step": 4}),
        ({"end_step": 5}, {"start_step": 2, "end_step": 10}),
        ({"end_step": 10}, {}),
    ],
)
def test_schedules_without_a_gap_are_not(first, second):
    planned = plan(datasets=two(first, second)).data.target_sets
    assert [(each.config.start_step, each.config.end_step) for each in planned] == [
        (fields.get("start_step", 1), fields.get("end_step")) for fields in (first, second)
    ]


def test_a_set_that_begins_after_the_run_is_noted():
    notes = plan(datasets=two({}, {"start_step": 11})).notes
    assert "dataset 'more': not used, start_step is 11 and max_train_steps is 10" in notes


def test_a_held_out_set_is_no_set_to_train_on():
    held_out = {"dataset_type": "eval"}
    assert "no set takes part in the first step" in error_of(datasets=two({"start_step": 2}, held_out))


def test_a_reference_set_has_no_schedule():
    notes = plan(datasets=[pair()[0], reference_set(start_step=3, train_batch_size=2)]).notes
    for key in ("start_step", "train_batch_size"):
        assert f"dataset 'refs': {key}: no effect on a reference set, only on its target set" in notes
