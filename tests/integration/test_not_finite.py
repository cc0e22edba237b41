"""A loss, a gradient or a weight that is not finite is never trained on and never saved."""

import json
import math

import pytest
from ending_plugins import disturb_loss
from long_runs import ADAPTER, changed, checkpoints
from safetensors.torch import load_file

from conftest import EditPairs, run_in

NAN = "loss = loss * float('nan')"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return (folder, arguments) of an undisturbed run of six steps, with its adapter's bytes in ``whole``."""
    folder = tmp_path_factory.mktemp("not-finite")
    pairs = EditPairs(folder)
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=5), "--max_train_steps", 6)
    ended = run_in(folder, *arguments, "--output_dir", "whole")
    assert ended.status == 0, ended.err
    return folder, arguments


@pytest.fixture
def train(data, tmp_path):
    """Train in a separate output folder, with some steps disturbed."""
    folder, arguments = data
    output = tmp_path / "output"

    def start(steps=(), action=NAN, **options):
        disturbed = disturb_loss(folder, arguments, steps, action) if steps else arguments
        return run_in(folder, *changed(disturbed, output_dir=output, **options))

    start.output = output
    start.whole = (folder / "whole" / ADAPTER).read_bytes()
    return start


def strict_lines(output):
    """Read metrics like a strict JSON reader."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_every_saved_weight_is_finite(output):
    for path in output.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("max_grad_norm", [0, 1])
def test_stop_saves_the_state_before_and_ends_with_status_1(train, value, max_grad_norm):
    ended = train([3], f"loss = loss * float('{value}')", max_grad_norm=max_grad_norm)
    assert ended.status == 1
    assert ended.err.count("error:") == 1
    assert f"error: step 3: the loss is {value}, with sample edits/000" in ended.err
    assert "hint: likely causes: learning_rate" in ended.err
    assert "Traceback" not in ended.err
    assert checkpoints(train.output) == ["checkpoint-2"]
    assert not (train.output / ADAPTER).exists()
    assert_every_saved_weight_is_finite(train.output)
    assert [line["step"] for line in strict_lines(train.output)] == [1, 2]
    assert "--resume_from_checkpoint latest" in ended.err


def test_a_stopped_run_continues_to_the_bytes_of_one_that_was_never_disturbed(train):
    assert train([3]).status == 1
    assert train().status == 0
    assert (train.output / ADAPTER).read_bytes() == train.whole


def test_skip_leaves_the_update_out_counts_it_and_finishes(train):
    ended = train([3, 5], on_nan="skip")
    assert ended.status == 0, ended.err
    assert "note: 2 updates were skipped because loss or gradient was not finite" in ended.err
    lines = strict_lines(train.output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] is None for line in lines] == [False, False, True, False, True, False]
    assert [line.get("skipped", False) for line in lines] == [False, False, True, False, True, False]
    assert_every_saved_weight_is_finite(train.output)


def test_skipped_updates_are_counted_over_a_resume(train):
    assert train([2], on_nan="skip", max_train_steps=3).status == 0
    ended = train([1], on_nan="skip")
    assert ended.status == 0, ended.err
    assert "note: 2 updates were skipped" in ended.err


def test_skip_gives_up_after_so_many_in_a_row(train):
    ended = train(range(3, 7), on_nan="skip", on_nan_limit=3)
    assert ended.status == 1
    assert "3 updates in a row were skipped, on_nan_limit allows fewer than 3" in ended.err
    assert checkpoints(train.output) == ["checkpoint-4"]
    assert_every_saved_weight_is_finite(train.output)


@pytest.mark.parametrize("rate", [1e38, 1e30, 3e38])
@pytest.mark.parametrize("max_grad_norm", [0, 1])
def test_weights_that_an_update_has_ruined_are_never_saved(train, rate, max_grad_norm):
    ended = train(learning_rate=rate, max_grad_norm=max_grad_norm, checkpoint_step_interval=1)
    assert ended.status == 1
    assert ended.err.count("error:") == 1
    assert "the weights after step 1 no longer give a finite loss; they are not saved" in ended.err
    assert checkpoints(train.output) == []
    assert not (train.output / ADAPTER).exists()


def test_ruined_weights_push_out_no_checkpoint_that_works(train):
    assert train(max_train_steps=2, checkpoints_total_limit=1).status == 0
    before = (train.output / ADAPTER).read_bytes()
    ended = train(learning_rate=1e38, checkpoints_total_limit=1, checkpoint_step_interval=1)
    assert ended.status == 1
    assert checkpoints(train.output) == ["checkpoint-2"]
    assert (train.output / ADAPTER).read_bytes() == before
    assert_every_saved_weight_is_finite(train.output)


def test_ruined_weights_without_a_checkpoint_due_are_found_by_the_next_loss_and_not_saved(train):
    ended = train(learning_rate=1e38)
    assert ended.status == 1
    assert "error: step 2: the loss is nan" in ended.err
    assert "step 1 is not saved: the weights after step 1 no longer give a finite loss" in ended.err
    assert checkpoints(train.output) == []


def test_a_measured_loss_that_is_not_finite_is_null_in_the_metrics(train, monkeypatch):
    from difftrain.validation.validator import Validator

    monkeypatch.setattr(Validator, "fixed_loss", lambda self, run: math.nan)
    ended = train(validation_steps=6, num_eval_images=0)
    assert ended.status == 0, ended.err
    assert [line["fixed_loss"] for line in strict_lines(train.output) if "fixed_loss" in line] == [None]
