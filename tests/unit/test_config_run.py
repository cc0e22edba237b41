"""The run file and the flags: accepted values, and the messages for wrong keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_runs import PLUGINS, error_of, pair, plan, run_values, target_set

from difftrain.errors import DifftrainError
from difftrain.planning.run_plan import plan_run
from difftrain.plugins.discovery import load_plugins


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_key():
    text = '{\n  // comment\n  "model_family": "flux",\n  "model_flavour": "kontext", "max_train_steps": 5,\n'
    text += '  "data_backend_config": "datasets.json",\n  "lora_rnk": 16,\n}'
    assert error_of(text) == "config.json:6: unknown key 'lora_rnk'; did you mean 'lora_rank'?"


@pytest.mark.parametrize(
    ("key", "value", "demand"),
    [
        ("lora_rank", True, "a whole number, got true"),
        ("lora_rank", 16.5, "a whole number, got 16.5"),
        ("lora_rank", "16.5", 'a whole number, got "16.5"'),
        ("lora_rank", 0, "at least 1, got 0"),
        ("learning_rate", "fast", 'a number, got "fast"'),
        ("learning_rate", False, "a number, got false"),
        ("gradient_checkpointing", 1, "true or false or 'auto', got 1"),
        ("gradient_checkpointing", "yes", "true or false or 'auto', got \"yes\""),
        ("output_dir", 3, "a text, got 3"),
        ("optimizer_config", [1], 'an object {"name": value}, got [1]'),
        ("validation_resolution", "big", "WIDTHxHEIGHT in pixels such as 1024x1024, or one edge such as 1024"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_it_must_be(key, value, demand):
    assert f": {key} must be {demand}" in error_of(run_values(**{key: value}))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lora_rank", "8", 8),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 1, 1.0),
        ("gradient_checkpointing", "false", False),
        ("checkpoints_total_limit", "null", None),
        ("max_train_steps", "16", 16),
        ("output_dir", "2024", Path("2024")),
        ("validation_resolution", 512, "512"),
        ("optimizer_config", "weight_decay=0.1,eps=1e-6", {"weight_decay": "0.1", "eps": "1e-6"}),
    ],
)
def test_an_exact_text_is_read_as_the_type_of_its_key(key, text, value):
    assert getattr(plan(run_values(**{key: text})).config, key) == value


def test_flags_win_over_the_file():
    assert plan(run_values(lora_rank=4), lora_rank="8").adapter.lora_rank == 8


def test_a_flag_wins_over_the_file_under_another_name_of_the_key():
    assert plan(run_values(checkpointing_steps=5), checkpoint_step_interval="7").config.checkpoint_step_interval == 7


def test_a_wrong_flag_is_named_as_a_flag():
    assert error_of(lora_rank="many") == 'flag --lora_rank: lora_rank must be a whole number, got "many"'


def test_keys_may_have_leading_dashes():
    dashed = {f"--{key.replace('_', '-')}": value for key, value in run_values().items()}
    assert plan(dashed).config.model_dump() == plan().config.model_dump()


def test_a_key_with_two_values_in_one_file_is_an_error():
    assert "lora_rank is given twice, as 4 and 8" in error_of(run_values(**{"lora_rank": 4, "--lora_rank": 8}))


def test_all_problems_of_both_files_come_together():
    message = error_of(run_values(lora_rnk=1, seed="x", optimizer="sgdd", use_ema=True), pair(crop="maybe"))
    expected = ("6 problems", "lora_rnk", "seed must", "unknown optimizer 'sgdd'", "crop must", "use_ema = true")
    assert [text for text in expected if text not in message] == ["6 problems"]
    assert message.startswith("5 problems")


@pytest.mark.parametrize("unset", [0, None, "0"])
def test_zero_and_null_leave_a_length_unset(unset):
    assert plan(run_values(max_train_steps=unset, num_train_epochs=3)).config.max_train_steps is None


def test_two_lengths_are_an_error():
    assert "max_train_steps = 10 and num_train_epochs = 3 are both set" in error_of(run_values(num_train_epochs=3))


@pytest.mark.parametrize("every", [0, 1, None, "null"])
def test_an_interval_that_leaves_out_no_block_asks_for_nothing(every):
    for recompute in ("auto", True, False):
        run = plan(run_values(gradient_checkpointing=recompute, gradient_checkpointing_interval=every))
        assert not run.config.recomputes_some
        assert run.notes == ()


def test_an_interval_beside_a_choice_by_memory_is_an_error():
    message = error_of(run_values(gradient_checkpointing="auto", gradient_checkpointing_interval=2))
    assert "gradient_checkpointing = auto and gradient_checkpointing_interval = 2 are both set" in message


def test_an_interval_where_nothing_is_recomputed_is_noted():
    (note,) = plan(run_values(gradient_checkpointing=False, gradient_checkpointing_interval=2)).notes
    assert note.startswith("gradient_checkpointing_interval 2 has no effect: gradient_checkpointing is false")
    assert plan(run_values(gradient_checkpointing=True, gradient_checkpointing_interval=2)).notes == ()


def test_no_length_is_an_error():
    assert "neither max_train_steps nor num_train_epochs is set" in error_of(run_values(max_train_steps=...))


def test_a_key_without_effect_is_reported_once_with_the_reason():
    run = plan(run_values(disable_benchmark=True), pair(skip_file_discovery="vae"))
    assert "disable_benchmark: no effect, nothing is benchmarked" in run.notes


def test_a_neutral_value_of_what_is_not_built_is_accepted_without_a_word():
    assert plan(run_values(fuse_qkv_projections=False, use_ema="false", eval_dataset_id=None)).notes == ()


def test_a_value_that_is_not_built_is_named():
    message = error_of(run_values(loss_type="huber", lr_scheduler="polynomial"))
    assert message == "not supported yet in difftrain 0.1: loss_type 'huber', lr_scheduler 'polynomial'"


def test_a_switch_of_other_trainers_chooses_by_name_here():
    assert plan(run_values(flow_use_uniform_schedule=True)).timestep_sampler.name == "uniform"


def test_an_option_of_what_is_not_chosen_is_noted():
    (note,) = plan(run_values(flow_beta_schedule_alpha=3.0)).notes
    assert note == "flow_beta_schedule_alpha: no effect, it is an option of 'beta', which this run does not use"


def test_placeholders_are_filled(monkeypatch):
    monkeypatch.setenv("RUN_NAME", "night")
    run = plan(run_values(output_dir="out/{model_family}-{model_flavour}/{env:RUN_NAME}"))
    assert run.config.output_dir == Path("out/flux-kontext/night")


def test_an_unset_environment_variable_is_named(monkeypatch):
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    message = error_of(run_values(output_dir="{env:NOT_SET_ANYWHERE}"))
    assert "the environment variable NOT_SET_ANYWHERE is not set" in message


@pytest.fixture
def _no_default_flavour(monkeypatch):
    monkeypatch.setattr(PLUGINS.registry.find("family", "flux"), "default_flavour", None)


@pytest.mark.usefixtures("_no_default_flavour")
def test_a_placeholder_of_a_flavour_that_is_left_out_is_an_error():
    message = error_of(run_values(model_flavour=..., output_dir="out/{model_flavour}"))
    assert "config.json:1: output_dir: {model_flavour}: model_flavour is not set" in message


def test_a_placeholder_of_a_flavour_of_the_wrong_type_is_an_error():
    message = error_of(run_values(model_flavour=7, output_dir="out/{model_flavour}"))
    assert "model_flavour must be a text, got 7" in message


def test_other_braces_are_left_alone():
    assert plan(run_values(validation_prompt="a {red} set")).config.validation_prompt == "a {red} set"


def test_a_syntax_error_names_file_and_line():
    assert error_of('{\n "seed": ,\n}').startswith("config.json:2: unexpected")


def test_a_key_written_twice_in_one_object_is_an_error():
    assert 'duplicate key "seed"' in error_of('{"seed": 1, "seed": 2}')


def test_an_unknown_flavour_gets_the_nearest_name():
    message = error_of(run_values(model_flavour="kontxt"))
    assert "unknown flavour 'kontxt' of 'flux'; did you mean 'kontext'? known: dev, kontext, krea, schnell" in message


@pytest.mark.usefixtures("_no_default_flavour")
def test_a_missing_flavour_lists_the_flavours():
    message = error_of(run_values(model_flavour=...))
    assert message == "model_flavour is missing; flavours of 'flux': dev, kontext, krea, schnell"


@pytest.mark.parametrize("absent", [..., None, "", "none"])
def test_a_flavour_that_is_left_out_is_the_default_of_the_family_and_is_reported(absent):
    run = plan(run_values(model_flavour=absent, output_dir="out/{model_flavour}"), [target_set()])
    assert (run.flavour.name, run.config.output_dir) == ("dev", Path("out/dev"))
    assert "model_flavour is not set: using 'dev', the default of 'flux'" in run.notes


def test_a_default_flavour_without_references_is_told_which_ones_take_them():
    message = error_of(run_values(model_flavour=...))
    assert message.endswith("hint: set model_flavour; those that take references: kontext")


def test_a_wrong_optimizer_option_gets_the_nearest_name():
    message = error_of(run_values(optimizer_config={"weight_decy": 0.1}))
    expected = "optimizer_config of 'adamw_bf16': unknown key 'weight_decy'; did you mean 'weight_decay'?"
    assert message == expected


def test_optimizer_options_written_as_text_reach_the_optimizer():
    assert plan(run_values(optimizer_config="weight_decay=0.1")).optimizer.weight_decay == 0.1


def test_a_learning_rate_out_of_the_usual_range_is_noted_with_the_range():
    (note,) = plan(run_values(optimizer="optimi-lion", learning_rate=1e-3)).notes
    assert "learning_rate 0.001 is high, 3e-06 to 5e-05 is usual" in note


def test_training_a_distilled_model_is_noted_with_its_base():
    (note,) = plan(run_values(model_flavour="schnell"), [pair()[0] | {"conditioning_data": []}]).notes
    assert "step-distilled" in note
    assert "train black-forest-labs/FLUX.1-dev instead" in note


def test_a_bucket_step_that_the_model_cannot_take_is_an_error():
    assert "aspect_bucket_alignment must be a multiple of 16" in error_of(run_values(aspect_bucket_alignment=24))


def test_null_does_not_resume():
    assert plan(run_values(resume_from_checkpoint=None)).config.resume_from_checkpoint == "none"


def test_nothing_but_the_two_files_is_read(tmp_path):
    plan(run_values(cache_dir="cache", output_dir="out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "datasets.json"]


def test_a_missing_dataset_file_is_named_with_its_key():
    message = error_of(run_values(data_backend_config="nowhere.json"))
    assert message.startswith("data_backend_config: nowhere.json does not exist")


def test_a_run_file_that_is_a_list_is_an_error():
    assert error_of(json.dumps([1])) == 'config.json must be an object {"key": value}, got [1]'


def test_validation_prompts_are_the_single_one_and_the_library():
    Path("library.json").write_text('{"red": "make it red"}')
    run = run_values(validation_prompt="make it blue", validation_prompt_library="library.json")
    assert plan(run).prompts == {"prompt": "make it blue", "red": "make it red"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "library.json does not exist"),
        ("{not json", "library.json cannot be read as JSON"),
        ('["make it red"]', "library.json must be one object"),
        ('{"a": "b", "red": 1, "blue": null}', "library.json: 2 of 3 prompts are not texts: red, blue"),
    ],
)
def test_a_wrong_prompt_library_is_reported_before_any_weight(text, said):
    if text is not None:
        Path("library.json").write_text(text)
    message = error_of(run_values(validation_prompt_library="library.json", optimizer="adamm"))
    assert said in message
    assert "unknown optimizer" in message


@pytest.mark.parametrize("optimizer", ["adamw_bf16", "optimi-lion"])
@pytest.mark.parametrize("betas", [[2, 0.9], [0.9, 1], [-0.1, 0.9]])
def test_betas_outside_zero_to_one_are_an_error_of_the_config(optimizer, betas):
    message = error_of(run_values(optimizer=optimizer, optimizer_config={"betas": betas}))
    assert message.startswith(f"optimizer_config of {optimizer!r}: betas must be ")


@pytest.mark.parametrize("key", ["seed", "validation_seed"])
def test_a_seed_that_no_generator_takes_is_an_error(key):
    assert f"{key} must be less than {2**63}, got {2**63}" in error_of(run_values(**{key: 2**63}))


@pytest.mark.parametrize("name", ["fp32", "float32"])
def test_float32_under_its_own_name_is_told_what_it_is_called_here(name):
    assert error_of(run_values(mixed_precision=name)).endswith(f'mixed_precision must be no for float32, got "{name}"')


def test_another_noise_level_for_references_is_not_built_yet():
    assert error_of(run_values(reference_timestep="zero")) == (
        "not supported yet in difftrain 0.1: reference_timestep = zero"
    )


def test_plugins_that_did_not_load_are_reported_once_per_report():
    Path("config.json").write_text(json.dumps(run_values(optimizer="a", loss_type="b", lr_scheduler="c")))
    Path("datasets.json").write_text(json.dumps(pair(caption_strategy="d")))
    with pytest.raises(DifftrainError) as caught:
        plan_run(Path("config.json"), {}, plugins=load_plugins(disabled=["superresolution"]))
    assert len(caught.value.problems) == 4
    assert str(caught.value).count("plugin 'superresolution' is turned off") == 1


def test_placeholders_of_texts_that_are_no_paths_are_filled_in_too():
    run = plan(run_values(validation_prompt="an image of {model_flavour}"), [target_set()])
    assert run.config.validation_prompt == "an image of kontext"
