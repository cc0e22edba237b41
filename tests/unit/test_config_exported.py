"""Files as a web interface exports them, with every option at its default, and the same keys as flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_runs import PLUGINS, USERS_FILES, pair, run_values

from difftrain.errors import ConfigError
from difftrain.planning.run_plan import plan_run

EXPORT = USERS_FILES / "web_export.json"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def text_of(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def export_values():
    return json.loads(EXPORT.read_text())["config"]


def plan_export(**changes):
    content = json.loads(EXPORT.read_text())
    content["config"] |= {f"--{key}": value for key, value in changes.items()}
    Path("export.json").write_text(json.dumps(content))
    Path("datasets.json").write_text(json.dumps(pair()))
    return plan_run(Path("export.json"), {}, plugins=PLUGINS)


def test_the_export_has_every_public_option():
    assert len(export_values()) > 300


def test_an_exported_file_loads_with_one_note_of_all_idle_keys():
    summary, clipping = plan_export().notes
    told, _, listed = summary.partition(" keys ask for nothing and have no effect: ")
    keys = listed.split(", ")
    assert int(told) == len(keys) > 200
    assert {"controlnet", "ema_decay", "t5_padding", "timestep_bias_strategy", "freeze_encoder_strategy"} <= set(keys)
    assert clipping == "grad_clip_method: no effect, gradients are clipped by their norm, at max_grad_norm"


def test_what_an_exported_file_changes_is_reported_by_itself():
    notes = plan_export(ema_decay=0.9, snr_gamma=5).notes
    assert "ema_decay: no effect, use_ema is not supported yet" in notes
    assert any(note.startswith("snr_gamma: no effect, ") for note in notes)


def test_an_exported_file_may_have_every_value_as_a_text():
    texts = {key.removeprefix("--"): "" if value is None else text_of(value) for key, value in export_values().items()}
    typed, written = plan_export(), plan_export(**texts)
    assert written.config.model_dump() == typed.config.model_dump()
    assert written.notes == typed.notes


def test_every_key_of_an_export_is_a_flag(command):
    flags = [f"{key}={text_of(value)}" for key, value in export_values().items() if value not in (None, "", [])]
    Path("datasets.json").write_text(json.dumps(pair()))
    ended = command("check", *flags, "--pretrained_model_name_or_path=tiny-random")
    assert "instance_data_dir edits does not exist" in ended.err


def test_a_line_of_an_exported_file_is_found():
    content = json.loads(EXPORT.read_text())
    content["config"] = {"--sed": 1, **content["config"]}
    Path("export.json").write_text(json.dumps(content, indent=1))
    line = next(i for i, text in enumerate(Path("export.json").read_text().split("\n"), 1) if '"--sed"' in text)
    Path("datasets.json").write_text(json.dumps(pair()))
    with pytest.raises(Exception, match=rf"export.json:{line}: unknown key 'sed'"):
        plan_run(Path("export.json"), {}, plugins=PLUGINS)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--controlnet"], "not supported yet in difftrain 0.1: controlnet = true"),
        (["--controlnet", "false", "--sed", "1"], "unknown flag --sed"),
        (["--validation_disable", "--lora_rank", "x"], "lora_rank must be a whole number"),
        (["--t5-padding", "zero"], "not supported yet in difftrain 0.1: t5_padding = zero"),
        (["--dataloader_prefetch", "--lora_rank=x"], "lora_rank must be a whole number"),
        (["--validation_prompt_library", "false", "--lora_rank=x"], "lora_rank must be a whole number"),
    ],
)
def test_a_key_of_other_trainers_is_a_flag_with_and_without_a_value(command, flags, said):
    Path("config.json").write_text(json.dumps(run_values()))
    Path("datasets.json").write_text(json.dumps(pair()))
    assert said in command("check", "--config", "config.json", *flags).err


def test_the_lycoris_config_of_an_export_is_used_only_with_its_adapter():
    assert not any("lycoris_config" in note for note in plan_export().notes)
    assert any("lycoris_config: no effect" in note for note in plan_export(lycoris_config="my.json").notes)
    with pytest.raises(ConfigError, match=r"lycoris_config: config/lycoris_config\.json does not exist"):
        plan_export(lora_type="lycoris")
