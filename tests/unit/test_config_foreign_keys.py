"""Keys of other trainers' files, each as a value, as a text and as a flag: they work, or say why they do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_runs import PLUGINS, error_of, pair, plan, run_values, target_set
from hypothesis import given
from hypothesis import strategies as st

from difftrain.config.known_keys import DATASET_TABLES, asks_for_nothing

TABLES = PLUGINS.run_tables


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


NEUTRAL = [
    ("validation_guidance_rescale", 0.0),
    ("controlnet", False),
    ("timestep_bias_strategy", "none"),
    ("t5_padding", "unmodified"),
    ("prediction_type", "flow_matching"),
    ("use_ema", 0),
    ("fuse_qkv_projections", False),
    ("num_validation_images", 1),
    ("evaluation_type", None),
    ("validation_noise_scheduler", "euler"),
    ("flow_use_beta_schedule", False),
    ("validation_disable", False),
]


@pytest.mark.parametrize(("key", "value"), NEUTRAL)
def test_a_value_that_asks_for_nothing_is_accepted_without_a_word(key, value):
    assert [run.notes for run in three_ways(key, value)] == [(), (), ()]


NOTHING = ["", "none", "None", "null", "NONE", None, False, "false", "False", 0, "0", "0.0"]


def is_zero(value) -> bool:
    return value in ("0", "0.0") or (value == 0 and value is not False)


@pytest.mark.parametrize("value", NOTHING)
def test_every_key_that_waits_is_neutral_in_every_spelling(value):
    keys = set(TABLES.not_built)
    keys |= set() if is_zero(value) else {*TABLES.switches, *TABLES.turns_off}
    assert plan(run_values(**dict.fromkeys(keys, value))).notes == ()


@pytest.mark.parametrize("value", NOTHING)
def test_every_dataset_key_that_waits_is_neutral_in_every_spelling(value):
    keys = set(DATASET_TABLES.not_built) - set(PLUGINS.dataset_schema.model_fields)
    assert plan(datasets=pair(**dict.fromkeys(keys, value))).notes == ()


IDLE = [
    ("base_model_default_dtype", "fp32"),
    ("gradient_precision", "fp32"),
    ("dataloader_prefetch", True),
    ("dataloader_prefetch_qlen", 10),
    ("training_scheduler_timestep_spacing", "trailing"),
    ("inference_scheduler_timestep_spacing", "leading"),
    ("freeze_encoder_strategy", "after"),
    ("noise_scheduler", "flowmatch"),
    ("pretrained_evaluation_model_name_or_path", "openai/clip-vit-large-patch14-336"),
    ("validation_disable_unconditional", True),
    ("disable_tf32", True),
    ("snr_gamma", 5),
    ("grad_clip_method", "value"),
    ("hidream_use_load_balancing_loss", True),
    ("lr_end", 4e-7),
    ("model_card_note", "mine"),
    ("webhook_config", {"url": "x"}),
    ("job_id", "x"),
]


@pytest.mark.parametrize(("key", "value"), IDLE)
def test_a_key_without_effect_is_accepted_with_its_reason(key, value):
    expected = (f"{key}: no effect, {TABLES.no_effect[key].reason}",)
    assert [run.notes for run in three_ways(key, value)] == [expected] * 3


@pytest.mark.parametrize("value", [True, "a text", 3.5, [1], {"a": 1}])
def test_every_key_without_effect_is_accepted_whatever_it_says(value):
    notes = plan(run_values(**dict.fromkeys(TABLES.no_effect, value))).notes
    summary = notes[0].partition(" and have no effect: ")[2].split(", ")
    told = {key: note for note in notes for key in note.partition(": ")[0].split(", ")}
    for key, idle in TABLES.no_effect.items():
        assert key in summary or told[key].endswith(f": no effect, {idle.reason}"), key


ASKED = [
    ("use_ema", True),
    ("use_ema", "yes"),
    ("controlnet", True),
    ("timestep_bias_strategy", "later"),
    ("t5_padding", "zero"),
    ("validation_guidance_rescale", 0.7),
    ("publishing_config", "publish.json"),
    ("scheduled_sampling_max_step_offset", 5),
    ("num_validation_images", 4),
    ("prediction_type", "epsilon"),
    ("revision", "main"),
]


@pytest.mark.parametrize(("key", "value"), ASKED)
def test_what_is_asked_for_and_not_built_is_an_error(key, value):
    expected = f"not supported yet in difftrain 0.1: {key} = {text_of(value)}"
    assert error_of(run_values(**{key: value})) == expected
    assert error_of(run_values(**{key: text_of(value)})) == expected
    assert error_of(**{key: text_of(value)}) == expected


VALUES = [
    ("report_to", "wandb"),
    ("lr_scheduler", "polynomial"),
    ("attention_mechanism", "flash-attn-3"),
    ("loss_type", "huber"),
    ("validation_prompt_library", True),
]


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_a_value_that_is_not_built_is_named(key, value):
    expected = f"not supported yet in difftrain 0.1: {key} {text_of(value)!r}"
    assert [error_of(run_values(**{key: value})), error_of(**{key: text_of(value)})] == [expected] * 2


SAME = [
    ("loss_type", "l2", "mse"),
    ("attention_mechanism", "diffusers", "auto"),
    ("attention_mechanism", "native-math", "math"),
    ("base_model_precision", "bf16", "no_change"),
    ("base_model_precision", "int8_quanto", "int8-quanto"),
    ("base_model_precision", "qfloat8", "fp8-quanto"),
    ("base_model_precision", "qint2", "int2-quanto"),
    ("text_encoder_1_precision", "bf16", "no_change"),
    ("text_encoder_2_precision", "qint8", "int8-quanto"),
    ("text_encoder_4_precision", "bf16", "no_change"),
    ("optimizer", "adamw-bf16", "adamw_bf16"),
    ("optimizer", "AdamW_BF16", "adamw_bf16"),
    ("optimizer", "optimi_lion", "optimi-lion"),
    ("lr_scheduler", "constant-with-warmup", "constant_with_warmup"),
]


@pytest.mark.parametrize(("key", "other", "own"), SAME)
def test_a_value_under_another_name_is_the_same_run(key, other, own):
    learning_rate = 1e-5 if own == "optimi-lion" else 1e-4
    values = run_values(**{key: other, "learning_rate": learning_rate})
    runs = [plan(values), plan(run_values(learning_rate=learning_rate), **{key: other})]
    assert [(getattr(run.config, key), run.notes) for run in runs] == [(own, ())] * 2


def test_the_other_name_of_a_caption_strategy():
    entry = target_set(caption_strategy="instance_prompt", instance_prompt="red")
    assert plan(datasets=[entry]).data.target_sets[0].captions.name == "instanceprompt"


UNSET = [None, "", "none", "null", "None"]


NEEDED = {"model_family", "output_dir", "cache_dir", "data_backend_config", "max_train_steps", "model_flavour"}
NULL_IS_A_VALUE = {"resume_from_checkpoint", "caption_strategy", "flow_schedule_shift"}
TEXTS = {"validation_prompt", "validation_negative_prompt"}


@pytest.mark.parametrize("value", UNSET)
def test_null_leaves_every_key_at_its_default(value):
    keys = {*PLUGINS.run_schema.model_fields} - NEEDED - NULL_IS_A_VALUE - TEXTS
    config = plan(run_values(**dict.fromkeys(keys, value))).config
    fields = type(config).model_fields
    assert {key: getattr(config, key) for key in keys} == {
        key: fields[key].get_default(call_default_factory=True) for key in keys
    }


@pytest.mark.parametrize("value", UNSET)
def test_a_needed_key_without_a_value_is_missing(value):
    assert "model_family is missing" in error_of(run_values(model_family=value))


@pytest.mark.parametrize("value", [False, "false", "False"])
@pytest.mark.parametrize(
    "key", ["validation_prompt_library", "eval_dataset_id", "checkpoints_total_limit", "optimizer_config", "plugins"]
)
def test_false_turns_off_what_is_nothing_by_default(key, value):
    run = plan(run_values(**{key: value}))
    assert getattr(run.config, key) in (None, (), {})
    assert run.notes == ()


def test_false_is_no_number_where_there_is_one_by_default():
    assert "learning_rate must be a number, got false" in error_of(run_values(learning_rate=False))


@pytest.mark.parametrize("value", [True, "true"])
def test_turning_validation_off_wins_over_its_interval(value):
    assert plan(run_values(validation_disable=value, validation_steps=50)).config.validation_steps == 0
    assert plan(run_values(validation_steps=50), validation_disable="true").config.validation_steps == 0


def test_two_names_of_one_key_of_which_one_says_nothing_are_no_contradiction():
    Path("library.json").write_text('{"red": "make it red"}')
    run = run_values(user_prompt_library="library.json", validation_prompt_library=False)
    assert plan(run).prompts == plan(dict(reversed(run.items()))).prompts == {"red": "make it red"}


def test_keys_with_one_reason_are_one_note():
    (note,) = plan(run_values(tracker_project_name="a", tracker_run_name="b")).notes
    assert note == "tracker_project_name, tracker_run_name: no effect, there is no tracker; report_to is none"


def test_an_unknown_key_is_still_an_error_with_the_nearest():
    message = error_of(run_values(gradient_acumulation_steps=2, simpletuner_magic=1))
    assert "unknown key 'gradient_acumulation_steps'; did you mean 'gradient_accumulation_steps'?" in message
    assert "unknown key 'simpletuner_magic'" in message


# values that ask for nothing


@pytest.mark.parametrize("usual", [0, 0.0, False, "0"])
@pytest.mark.parametrize("value", [0, 0.0, "0", "0.0", "0e0", " 0 ", "false", False])
def test_zero_is_zero_in_every_spelling(usual, value):
    assert asks_for_nothing(value, (usual,))


@pytest.mark.parametrize("value", [None, "", " ", "none", "NULL", [], {}, "[]", "{}", False, "False"])
def test_nothing_asks_for_nothing(value):
    assert asks_for_nothing(value)


@pytest.mark.parametrize("value", [True, "true", 1, "1", "x", [0], {"a": None}, float("nan")])
def test_anything_else_asks_for_something(value):
    assert not asks_for_nothing(value)


@given(st.floats(allow_nan=False))
def test_a_number_and_its_text_ask_for_the_same(value):
    assert asks_for_nothing(repr(value), (value,))
    assert asks_for_nothing(value, (repr(value),))
