"""NaN, infinity and other non-numbers are refused wherever a config has a number."""

from __future__ import annotations

import json
import math

import pytest
from config_runs import PLUGINS, error_of, pair, run_values, target_set
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from difftrain.config.user_values import coerce, wrong_numbers
from difftrain.contracts import Loss
from difftrain.steps.optimizers import AdamWBf16

WRITTEN = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"]
TEXTS = ["nan", "inf", "-inf", "NaN", "Infinity", "1e400"]
NUMBERS = sorted(
    key for key, field in PLUGINS.run_schema.model_fields.items() if coerce(field.annotation, "0.5") == 0.5
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def with_written(values, written: str) -> str:
    """Return the JSON text of values, with a number in place of ``"HERE"``."""
    return json.dumps(values).replace('"HERE"', written)


def test_there_are_numbers_to_try():
    assert {"learning_rate", "max_grad_norm", "flow_schedule_shift", "lora_alpha", "adam_epsilon"} <= set(NUMBERS)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("key", NUMBERS)
def test_a_run_number_must_be_finite(key, written):
    message = error_of(with_written(run_values(**{key: "HERE"}), written))
    shown = "NaN" if written == "NaN" else "-Infinity" if written.startswith("-") else "Infinity"
    assert f"config.json:1: {key} must be a finite number, got {shown}" in message


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["learning_rate", "max_grad_norm", "flow_schedule_shift"])
def test_a_run_number_as_text_or_flag_must_be_finite(key, text):
    for message in (error_of(run_values(**{key: text})), error_of(**{key: text})):
        assert f"{key} must be a number" in message
        assert f'got "{text}"' in message


@pytest.mark.parametrize("key", ["seed", "lora_rank", "max_train_steps"])
def test_a_whole_number_must_be_finite(key):
    assert f"{key} must be a finite number, got NaN" in error_of(with_written(run_values(**{key: "HERE"}), "NaN"))


def test_a_number_of_too_many_digits_is_reported():
    assert "max_train_steps must be a whole number" in error_of(run_values(max_train_steps="9" * 5000))


@pytest.mark.parametrize("value", ["HERE", [0.9, "HERE"]])
def test_the_optimizers_numbers_must_be_finite(value):
    message = error_of(with_written(run_values(optimizer_config={"eps": value}), "NaN"))
    assert "eps" in message
    assert "must be a finite number, got NaN" in message


@pytest.mark.parametrize("text", ["eps=nan", "eps=inf", "eps=1e400"])
def test_the_optimizers_numbers_as_text_must_be_finite(text):
    message = error_of(run_values(optimizer_config=text))
    assert message == f"optimizer_config of 'adamw_bf16': eps must be a number, got \"{text.partition('=')[2]}\""


@pytest.mark.parametrize("key", ["resolution", "probability", "minimum_aspect_ratio", "maximum_image_size"])
def test_a_dataset_number_must_be_finite(key):
    message = error_of(datasets=with_written([target_set(**{key: "HERE"})], "Infinity"))
    assert message == f"datasets.json:1: dataset 'edits': {key} must be a finite number, got Infinity"


def test_a_number_in_a_list_must_be_finite():
    datasets = with_written([target_set(crop_aspect_buckets=[1.0, "HERE"])], "NaN")
    assert "crop_aspect_buckets[1] must be a finite number, got NaN" in error_of(datasets=datasets)


@pytest.mark.parametrize("params", [False, True])
def test_a_generators_number_must_be_finite(params):
    own = {"blur_radius": "HERE"}
    block = {"type": "superresolution", **({"params": own} if params else own)}
    message = error_of(datasets=with_written([target_set(conditioning=[block])], "1e400"))
    assert "conditioning" in message
    assert "blur_radius must be a finite number, got Infinity" in message


def test_a_generators_number_in_a_list_must_be_finite():
    block = {"type": "jpeg", "quality_range": [10, "HERE"]}
    assert "quality_range[1] must be a finite number" in error_of(
        datasets=with_written([target_set(conditioning=block)], "NaN")
    )


class Weighted(Loss):
    name = "weighted"
    weights: tuple[float, ...] = ()
    weight: float = 1.0

    def compute(self, prediction, noisy, batch): ...


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_options_of_any_class_are_finite(wrong):
    for values in ({"weight": wrong}, {"weights": (1.0, wrong)}):
        with pytest.raises(ValidationError):
            Weighted(**values)
    with pytest.raises(ValidationError):
        AdamWBf16(eps=wrong)


@given(st.recursive(st.floats(), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner)))
def test_every_wrong_number_is_found_however_deep(value):
    assert bool(list(wrong_numbers("key", value))) == ("NaN" in json.dumps(value) or "Infinity" in json.dumps(value))


def test_finite_values_are_accepted():
    assert error_of(run_values(optimizer="x", learning_rate=1e-300), pair()).startswith("optimizer: unknown")
