"""What plugin files and switches change in an assembled run."""

import json

import pytest
from long_runs import changed

from conftest import EditPairs, run_in

WATCHING = """
import json

from difftrain import hookimpl


def note(hook, **facts):
    with open("watched.jsonl", "a") as file:
        file.write(json.dumps({"hook": hook, **facts}) + "\\n")


@hookimpl
def difftrain_check_config(config):
    return ["this run is not wanted"] if config.max_train_steps == 13 else []


@hookimpl
def difftrain_run_start(total_steps, first_step):
    note("start", total=total_steps, first=first_step)


@hookimpl
def difftrain_step_end(result):
    note("step", step=result.step)


@hookimpl
def difftrain_checkpoint_saved(step, path):
    note("saved", step=step, there=path.is_dir())


@hookimpl
def difftrain_validation_end(step, sheets):
    note("validated", step=step, sheet=sheets["sheet"].is_file())


@hookimpl
def difftrain_run_end(step, status):
    note("end", step=step, status=status)
"""


@pytest.fixture
def train(tmp_path):
    pairs = EditPairs(tmp_path)
    (tmp_path / "watching.py").write_text(WATCHING)
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=2), "--plugins", "./watching.py")
    return lambda **options: run_in(tmp_path, *changed(arguments, **options))


def test_observers_are_told_of_everything_in_its_order(train, tmp_path):
    ended = train(
        max_train_steps=2, validation_steps=2, validation_num_inference_steps=1, validation_resolution=64,
        num_eval_images=1,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    told = [json.loads(line) for line in (tmp_path / "watched.jsonl").read_text().splitlines()]
    assert told == [
        {"hook": "start", "total": 2, "first": 0},
        {"hook": "step", "step": 1},
        {"hook": "step", "step": 2},
        {"hook": "saved", "step": 2, "there": True},
        {"hook": "validated", "step": 2, "sheet": True},
        {"hook": "end", "step": 2, "status": "finished"},
    ]


def test_a_plugin_is_asked_whether_the_config_is_right_before_anything_is_read(train, tmp_path):
    ended = train(max_train_steps=13)
    assert ended.status == 2
    assert ended.err.startswith("error: this run is not wanted")
    assert not (tmp_path / "watched.jsonl").exists()


def test_a_plugin_that_is_turned_off_gives_nothing(train):
    ended = train(max_train_steps=1, disable_plugin="flux_kontext")
    assert ended.status == 2
    assert "unknown flavour 'kontext'" in ended.err
    assert "plugin 'flux_kontext' is turned off" in ended.err
