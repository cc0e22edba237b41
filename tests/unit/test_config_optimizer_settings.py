"""Optimizer settings as separate keys: which optimizer takes them, and which value wins."""

from __future__ import annotations

import json

import pytest
from config_runs import error_of, plan, run_values


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def text_of(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def three_ways(key, value):
    """Return the plans of a run with a key in its file, in its file as a text, and as a flag."""
    yield plan(run_values(**{key: value}))
    yield plan(run_values(**{key: text_of(value)}))
    yield plan(run_values(**{key: ...}), **{key: text_of(value)})


@pytest.mark.parametrize(
    ("key", "value", "setting", "meant"),
    [
        ("adam_epsilon", 1e-6, "eps", 1e-6),
        ("adam_weight_decay", 0.1, "weight_decay", 0.1),
        ("adam_beta1", 0.8, "betas", (0.8, 0.999)),
        ("adam_beta2", 0.99, "betas", (0.9, 0.99)),
        ("optimizer_beta1", 0.8, "betas", (0.8, 0.999)),
        ("optimizer_beta2", 0.99, "betas", (0.9, 0.99)),
    ],
)
def test_a_setting_of_the_optimizer_may_be_a_key_of_its_own(key, value, setting, meant):
    runs = list(three_ways(key, value))
    assert [(getattr(run.optimizer, setting), run.notes) for run in runs] == [(meant, ())] * 3


def test_the_settings_of_adam_are_not_those_of_lion():
    run = plan(run_values(optimizer="optimi-lion", learning_rate=1e-5, adam_weight_decay=0.01, adam_beta2=0.9))
    assert (run.optimizer.weight_decay, run.optimizer.betas) == (0.0, (0.9, 0.99))
    assert run.notes == (
        "adam_beta2, adam_weight_decay: no effect with optimizer 'optimi-lion' and its optimizer_config",
    )


def test_betas_of_any_optimizer_are_those_of_lion_too():
    run = plan(run_values(optimizer="optimi-lion", learning_rate=1e-5, optimizer_beta2=0.95))
    assert run.optimizer.betas == (0.9, 0.95)


def test_optimizer_config_wins_over_single_keys_and_that_is_reported():
    run = plan(run_values(optimizer_config={"weight_decay": 0.05}, adam_weight_decay=0.01))
    assert run.optimizer.weight_decay == 0.05
    assert run.notes == ("adam_weight_decay: no effect with optimizer 'adamw_bf16' and its optimizer_config",)


@pytest.mark.parametrize(("key", "value"), [("adam_epsilon", 0), ("adam_beta1", 1), ("adam_weight_decay", -1)])
def test_a_setting_that_no_optimizer_takes_is_an_error(key, value):
    assert f"config.json:1: {key} must be " in error_of(run_values(**{key: value}))
