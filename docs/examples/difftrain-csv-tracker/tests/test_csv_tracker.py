"""Tests of the example: what it writes, alone and in a run of the real command."""

import csv

from difftrain import StepResult, ValidationResult
from difftrain.testing import run_command
from difftrain_csv_tracker.plugin import CsvTracker

STEP = StepResult(step=3, loss=0.5, learning_rate=1e-4, grad_norm=1.0, seconds=1.0, samples=1, epoch=0)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_steps_and_validations_become_lines(tmp_path):
    tracker = CsvTracker(csv_tracker_file=tmp_path / "numbers.csv")
    tracker.step_end(STEP)
    tracker.validation_end(ValidationResult(step=3, metrics={"fixed_loss": 0.25}))
    assert rows(tmp_path / "numbers.csv") == [
        ["3", "loss", "0.5"], ["3", "learning_rate", "0.0001"], ["3", "fixed_loss", "0.25"],
    ]  # fmt: skip


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CsvTracker().step_end(STEP)
    assert list(tmp_path.iterdir()) == []


def test_the_command_tells_it_of_a_run(tmp_path):
    ended = run_command(
        tmp_path, "--demo", model="flux", flavour="kontext", max_train_steps=1, num_eval_images=1,
        validation_num_inference_steps=1, validation_num_seeds=1, validation_on_startup=False,
        csv_tracker_file="numbers.csv", pretrained_model_name_or_path="tiny-random", validation_resolution=64,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "numbers.csv" in ended.files
    assert "plugin 'csv_tracker' of difftrain-csv-tracker" in ended.err
    names = [(step, name) for step, name, _ in rows(tmp_path / "numbers.csv")]
    assert names[:3] == [("1", "loss"), ("1", "learning_rate"), ("1", "fixed_loss")]
    assert ("1", "psnr") in names
