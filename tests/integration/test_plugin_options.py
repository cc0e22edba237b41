"""Options of a third-party schedule and quantizer, through the real command."""

import pytest
from long_runs import changed

from conftest import EditPairs, read_metrics, run_in

PLUGIN = '''
from typing import ClassVar

import torch
from pydantic import Field

from difftrain import Quantizer, Schedule, hookimpl


class Stairs(Schedule):
    """Halves the rate every few steps."""

    name: ClassVar[str] = "stairs"
    stairs_every: int = Field(100, ge=1)
    """Steps per stair."""

    def factor(self, step, warmup_steps, total_steps):
        return 0.5 ** (step // self.stairs_every)


class Rounded(Quantizer):
    """Rounds the frozen weights."""

    name: ClassVar[str] = "rounded"
    rounded_digits: int = 6
    """Decimals that are kept."""

    def check(self):
        return None

    def convert(self, name, module, device):
        with torch.no_grad():
            module.weight.copy_(module.weight.round(decimals=self.rounded_digits))
        return module.requires_grad_(False).to(device)


@hookimpl
def difftrain_schedules():
    return (Stairs,)


@hookimpl
def difftrain_quantizers():
    return (Rounded,)
'''


@pytest.fixture
def train(tmp_path):
    pairs = EditPairs(tmp_path)
    (tmp_path / "stairs.py").write_text(PLUGIN)
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=2), "--plugins", "./stairs.py")
    arguments += ("--lr_scheduler", "stairs", "--lr_warmup_steps", 0, "--max_train_steps", 4)
    return lambda **options: run_in(tmp_path, *changed(arguments, **options))


def test_a_schedules_option_moves_the_learning_rate_and_may_change_on_the_way(train, tmp_path):
    assert train(stairs_every=1, max_train_steps=2).status == 0
    ended = train(stairs_every=3)
    assert ended.status == 0, ended.err
    assert "stairs_every 1 -> 3" in ended.err
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "output")]
    assert rates == pytest.approx([1e-3, 5e-4, 1e-3, 5e-4])


def test_an_option_of_a_schedule_that_is_not_chosen_is_noted(train):
    ended = train(lr_scheduler="constant", stairs_every=3, max_train_steps=1)
    assert "note: stairs_every: no effect, it is an option of 'stairs', which this run does not use" in ended.err
    assert "no effect" not in train(stairs_every=3, max_train_steps=1, resume_from_checkpoint="none").err


def test_a_wrong_value_of_a_schedules_option_is_reported_with_its_flag(train):
    ended = train(stairs_every=0)
    assert ended.status == 2
    assert "flag --stairs_every" in ended.err


def test_the_help_lists_options_of_schedules_and_quantizers(train):
    shown = train(help="true").out
    assert "lr_scheduler = stairs:" in shown
    assert "--stairs_every INT" in shown
    assert "--rounded_digits INT" in shown


def test_a_quantizers_option_reaches_the_weights_and_tells_measurements_apart(train, tmp_path):
    measured = {}
    for digits in (6, 0):
        output = tmp_path / f"output-{digits}"
        ended = train(
            base_model_precision="rounded", rounded_digits=digits, max_train_steps=1, output_dir=output,
            validation_steps=1, num_eval_images=0,
        )  # fmt: skip
        assert ended.status == 0, ended.err
        assert "no effect" not in ended.err
        measured[digits] = read_metrics(output)[-1]
    assert measured[6]["fixed_loss"] != measured[0]["fixed_loss"]
    assert measured[6]["fixed_loss_on"] != measured[0]["fixed_loss_on"]
