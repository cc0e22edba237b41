"""The command line: spellings, unknown words, errors, help, and modules that it does not import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from config_runs import PLUGINS, error_of, pair, run_values

from difftrain.cli.adapter_commands.edit_flags import EDIT_FLAGS
from difftrain.cli.demo_flag import opening
from difftrain.cli.flags import read_command_line
from difftrain.cli.main import COMMANDS
from difftrain.config.schema import RunConfig

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "optimi", "optimum", "safetensors")


def given(*arguments):
    """Return the flags that a command line gives."""
    _, flags = read_command_line(arguments, PLUGINS.run_schema, {"train": lambda invocation: 0})
    return flags


@pytest.mark.parametrize(
    "arguments", [("--lora_rank", "16"), ("--lora-rank", "16"), ("--lora_rank=16",), ("--lora-rank=16",)]
)
def test_a_flag_has_four_spellings(arguments):
    assert given(*arguments) == {"lora_rank": "16"}


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("--gradient_checkpointing",), "true"),
        (("--gradient-checkpointing", "--seed", "1"), "true"),
        (("--gradient_checkpointing", "false"), "false"),
        (("--gradient_checkpointing=false",), "false"),
        (("--gradient-checkpointing", "True"), "True"),
    ],
)
def test_a_true_or_false_flag_may_stand_alone(arguments, value):
    assert given(*arguments)["gradient_checkpointing"] == value


@pytest.mark.parametrize("spelling", ["--{} maybe", "--{}=maybe"])
@pytest.mark.parametrize("key", [key for key, field in RunConfig.model_fields.items() if "bool" in str(field)])
def test_a_wrong_word_after_a_true_or_false_flag_is_its_value(key, spelling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = error_of(run_values(**{key: ...}), **given(*spelling.format(key).split()))
    assert said.startswith(f"flag --{key}: {key} must be ")
    assert said.endswith(', got "maybe"')
    assert "true or false" in said


def test_a_command_after_a_flag_is_no_value(command):
    assert command("--cuda_graphs", "check").err == "error: unexpected word 'check'; did you mean `difftrain check`?\n"


@pytest.mark.parametrize("flags", [{}, {"model_family": "a", "model_flavour": "b", "output_dir": "c"}])
def test_the_demo_says_how_long_it_takes_as_it_ships(flags):
    told = opening("small (a b)", flags)
    assert told.startswith("demo: the model small (a b) learns to sharpen photographs from pairs of ")
    assert "This takes about two minutes on two CPU cores; 8 photographs are held out" in told


@pytest.mark.parametrize("key", ["pretrained_model_name_or_path", "max_train_steps", "lora_rank"])
def test_the_demo_promises_no_time_with_another_model_or_length(key):
    told = opening("small (a b)", {"model_family": "a", key: "1"})
    assert "minutes" not in told
    assert "\n8 photographs are held out" in told


def test_model_and_flavour_are_short_names():
    assert given("--model", "flux", "--flavour=dev") == {"model_family": "flux", "model_flavour": "dev"}


def test_a_plugins_option_is_a_flag():
    assert given("--flux-lora-target", "all+ffs") == {"flux_lora_target": "all+ffs"}


def test_a_key_that_is_only_known_by_name_is_a_flag_too():
    assert given("--disable_benchmark", "--use_ema=false") == {"disable_benchmark": "true", "use_ema": "false"}


def test_a_list_is_written_with_commas_or_by_repeating():
    assert given("--disable_plugin=a,b", "--disable_plugin", "c") == {"disable_plugin": ["a", "b", "c"]}


def test_a_negative_number_is_a_value():
    assert given("--learning_rate", "-1e-4") == {"learning_rate": "-1e-4"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lora_rnk", "3"), "error: unknown flag --lora_rnk; did you mean --lora_rank?\n"),
        (("chek",), "error: unexpected word 'chek'; did you mean `difftrain check`?\n"),
        (("--lora_rank",), "error: --lora_rank needs a value: --lora_rank VALUE\n"),
        (("check", "--html"), "error: --html needs a value: --html DIR\n"),
        (("--seed", "1", "--seed", "2"), "error: --seed is given twice; give it once\n"),
        (("--config", "nowhere.json"), "error: nowhere.json does not exist\n"),
        (("--json",), "error: --json works only with `difftrain check`, `difftrain plan`, `difftrain identify` and "),
        (("check", "--card", "H100"), "error: --card works only with `difftrain plan`\n"),
        (("--demo", "--config", "config.json"), "error: --demo comes with its own run file"),
        ((), "error: 2 problems\n- no run file: config/config.json does not exist in "),
    ],
)
def test_a_wrong_command_line_is_one_error_with_status_2(command, tmp_path, arguments, said):
    (tmp_path / "config.json").write_text("{}")
    ended = command(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(said)


def test_the_run_file_is_found_where_others_keep_it(command, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps({"sed": 1}))
    assert "config/config.json:1: unknown key 'sed'; did you mean 'seed'?" in command().err


def test_check_gives_its_problems_as_json(command, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(run_values(sed=1, use_ema=True)))
    (tmp_path / "datasets.json").write_text(json.dumps(pair()))
    ended = command("check", "--config", "config.json", "--json")
    assert (ended.status, ended.err) == (2, "")
    assert ended.json == {
        "status": "error",
        "problems": [
            "config.json:1: unknown key 'sed'; did you mean 'seed'?",
            "not supported yet in difftrain 0.1: use_ema = true",
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lora_rnk", "3"), "unknown flag --lora_rnk; did you mean --lora_rank?"),
        (("--config", "broken.json"), "broken.json:1: unexpected"),
        (("--disable_plugin", "nobody"), "disable_plugin: no plugin 'nobody' is installed"),
    ],
)
def test_check_gives_every_other_error_as_json_too(command, tmp_path, arguments, said):
    (tmp_path / "broken.json").write_text('{"seed": ,}')
    ended = command("check", "--json", *arguments)
    assert (ended.status, ended.err, ended.json["status"]) == (2, "", "error")
    (problem,) = ended.json["problems"]
    assert problem.startswith(said)


def test_check_of_the_demo_counts_samples_and_steps(command):
    ended = command("check", "--model", "flux", "--flavour", "kontext", "--demo", "--json")
    assert ended.status == 0
    assert ended.json["status"] == "ok"
    assert ended.json["samples"] > 0
    assert ended.json["total_steps"] >= 60


def test_plugins_lists_every_bundled_plugin(command):
    listed = {plugin["name"]: plugin["status"] for plugin in command("plugins", "--json").json}
    bundled = ("core", "flux", "flux_kontext", "superresolution", "jpeg_artifacts")
    assert {name: listed.get(name) for name in bundled} == dict.fromkeys(bundled, "ok")


def test_plugins_shows_aliases_behind_their_generator(command):
    assert "    generator: jpeg_artifacts (also jpeg, compression)\n" in command("plugins").out


def test_help_to_a_reader_that_leaves_ends_quietly(tmp_path):
    program = [sys.executable, "-m", "difftrain", "--help"]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 141


def test_help_shows_every_option_once(command):
    text = command("--help").out
    shown = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")]
    assert sorted(shown) == sorted({f"--{key}" for key in PLUGINS.run_schema.model_fields} | OWN)


SWITCHES = ("demo", "fast", "json", "pixels", "verify", "prune", "merge", "no_verify", "help")
OWN = {f"--{key}" for key in (*SWITCHES, "config", "html", "card", "format", "output", "dtype", "as_lora")}
OWN |= {f"--{key}" for key in EDIT_FLAGS}


def test_help_shows_defaults_and_registered_names(command):
    text = " ".join(command("--help").out.split())
    assert "One of: adamw_bf16, optimi-lion. [default: adamw_bf16]" in text


@pytest.mark.parametrize("named", sorted(COMMANDS))
def test_a_commands_help_has_the_flags_that_it_takes_and_no_other(command, named):
    ended = command(named, "--help")
    shown = {line.split()[0] for line in ended.out.splitlines() if line.startswith("  --")}
    assert {"--config", "--help"} <= shown <= OWN
    assert len(ended.out.splitlines()) < 40
    needed = {
        "--html": "pages",
        "--card": "H100",
        "--format": "kohya",
        "--output": "a.safetensors",
        "--dtype": "bf16",
        "--as_lora": "4",
        **{f"--{key}": "1" for key in EDIT_FLAGS},
    }
    for flag in sorted(OWN - {"--config", "--demo", "--help"}):
        given = (flag, needed[flag]) if flag in needed else (flag,)
        ended = command(named, *given, "--max_train_steps", "no number")
        refused = f"{flag} works only with " in ended.err + ended.out
        assert refused == (flag not in shown), flag


def test_help_works_beside_a_broken_run_file(command, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{")
    assert command("--help").status == 0


@pytest.mark.parametrize(
    "arguments", [("--help",), ("plugins",), ("check", "--demo", "--model=flux", "--flavour=kontext"), ("--sed", "1")]
)
def test_nothing_heavy_is_imported_before_training(tmp_path, arguments):
    program = f"""
import sys
from difftrain.cli.main import run
run({list(arguments)!r})
print("heavy:", sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "heavy: []"


def test_a_plugin_file_of_the_run_file_is_loaded(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from difftrain import Loss, hookimpl\n\n\n"
        "class Mine(Loss):\n    name = 'mine'\n    mine_weight: float = 2.0\n\n"
        "    def compute(self, prediction, noisy, batch): ...\n\n\n"
        "@hookimpl\ndef difftrain_losses():\n    return [Mine]\n"
    )
    (tmp_path / "config.json").write_text(json.dumps(run_values(plugins=["./mine.py"], mine_weight="heavy")))
    assert command("--config", "config.json").err.startswith(
        'error: 2 problems\n- config.json:1: mine_weight must be a number, got "heavy"\n'
    )
    assert "--mine_weight FLOAT" in command("--config", "config.json", "--help").out
