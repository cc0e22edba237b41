"""Every key that holds a path: what is filled in, and what is refused because it cannot be meant."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from config_runs import PLUGINS, error_of, pair, plan, reference_set, run_values, target_set
from hypothesis import given
from hypothesis import strategies as st

from difftrain.config.paths import expand_path, holds_path
from difftrain.config.problems import Problems
from difftrain.config.section import parse_options
from difftrain.contracts import ConditioningGenerator
from difftrain.errors import ConfigError
from difftrain.planning.run_plan import plan_run

BLUR = {"type": "superresolution", "blur_radius": 3.0}
TEXT = {"id": "text", "dataset_type": "text_embeds"}
PLAIN = st.text(alphabet="abc/._- ", min_size=1).filter(str.strip)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "$scratch {x}"))
    (tmp_path / "home").mkdir()


def write_library(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"red": "make it red"}')


def planned_path(key: str, text: str, *, flag: bool = False) -> object:
    """Return the value of a run key after planning."""
    values = run_values() if flag else run_values(**{key: text})
    return getattr(plan(values, pair(), **({key: text} if flag else {})).config, key)


RUN_PATHS = (
    "output_dir",
    "cache_dir",
    "pretrained_model_name_or_path",
    "pretrained_transformer_model_name_or_path",
    "resume_from_checkpoint",
)


def test_every_key_of_a_path_type_is_known_as_a_path():
    keys = {key for key, field in PLUGINS.run_schema.model_fields.items() if holds_path(key, field.annotation)}
    assert keys == {
        *RUN_PATHS,
        "data_backend_config",
        "validation_prompt_library",
        "plugins",
        "lycoris_config",
        "init_lora",
    }
    keys = {key for key, field in PLUGINS.dataset_schema.model_fields.items() if holds_path(key, field.annotation)}
    assert keys == {"instance_data_dir", "cache_dir", "cache_dir_vae", "csv_file"}


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("key", RUN_PATHS)
def test_a_run_path_may_start_at_home_or_in_a_variable(key, flag, tmp_path):
    assert str(planned_path(key, "~/here", flag=flag)) == str(tmp_path / "home" / "here")
    assert str(planned_path(key, "{env:SCRATCH}/a", flag=flag)) == str(tmp_path / "$scratch {x}" / "a")
    assert str(planned_path(key, "x/{model_family}", flag=flag)) == "x/flux"


@pytest.mark.parametrize("key", ["cache_dir", "pretrained_model_name_or_path", "resume_from_checkpoint"])
def test_a_run_path_may_lie_in_the_output_folder(key, tmp_path):
    values = run_values(output_dir="~/{model_flavour}", **{key: "{output_dir}/x"})
    assert str(getattr(plan(values).config, key)) == str(tmp_path / "home/kontext/x")


def test_the_output_folder_of_a_flag_is_meant():
    assert plan(run_values(output_dir="a", cache_dir="{output_dir}/c"), output_dir="b").config.cache_dir == Path("b/c")


def test_the_output_folder_that_is_left_out_is_its_default():
    assert plan(run_values(cache_dir="{output_dir}/c")).config.cache_dir == Path("output/c")


@pytest.mark.parametrize("text", ["~/set.json", "{env:HOME}/set.json", "{output_dir}/set.json"])
@pytest.mark.parametrize("key", ["data_backend_config", "validation_prompt_library"])
def test_files_that_are_read_are_found_where_they_are_meant(key, text, tmp_path):
    content = pair() if key == "data_backend_config" else {"red": "make it red"}
    (tmp_path / "home" / "set.json").write_text(json.dumps(content))
    run = plan(run_values(output_dir="~", **{key: text}))
    assert getattr(run.config, key) == tmp_path / "home" / "set.json"


def test_every_path_of_a_dataset_is_filled_in(tmp_path):
    datasets = [
        target_set(
            instance_data_dir="~/{id}",
            cache_dir_vae="{output_dir}/{id}",
            conditioning=[BLUR | {"instance_data_dir": "{output_dir}/made/{id}"}, BLUR | {"instance_data_dir": "~/b"}],
        ),
        TEXT | {"cache_dir": "{env:SCRATCH}/{model_family}"},
    ]
    data = plan(run_values(output_dir="~/out"), datasets).data
    edits = data.by_id("edits")
    home = tmp_path / "home"
    assert edits.source.instance_data_dir == home / "edits"
    assert edits.latents_folder == home / "out" / "edits"
    assert [made.folder for made in edits.generators] == [home / "out/made/edits", home / "b"]
    assert data.text_folder == tmp_path / "$scratch {x}" / "flux"


def test_the_captions_of_a_generator_are_filled_in_but_keep_other_braces():
    datasets = [target_set(conditioning=BLUR | {"captions": "sharpen {id} in {red} for $5"})]
    assert plan(datasets=datasets).data.target_sets[0].generators[0].captions == ("sharpen edits in {red} for $5",)


class Masks(ConditioningGenerator):
    name = "masks"
    folder: Path = Path("masks")
    more: tuple[Path, ...] = ()
    named: dict[str, Path] = {}

    def generate(self, image, rng): ...


def test_the_paths_of_a_plugins_options_are_filled_in(tmp_path):
    values = {"folder": "~/m", "more": ["{id}/a", "~"], "named": {"x": "{output_dir}"}}
    known = {"id": "i", "output_dir": "out"}
    masks = parse_options(Masks, values, prefix="", problems=Problems(), known=known)
    home = tmp_path / "home"
    assert (masks.folder, masks.more, masks.named) == (home / "m", (Path("i/a"), home), {"x": Path("out")})


@pytest.mark.parametrize("value", ["$HOME/m", ["ok", "${X}"], {"x": "{y}"}])
def test_the_paths_of_a_plugins_options_are_checked(value):
    problems = Problems()
    key = {str: "folder", list: "more", dict: "named"}[type(value)]
    assert parse_options(Masks, {key: value}, prefix="block: ", problems=problems, known={}) is None
    (text,) = problems.texts
    assert text.startswith(f"block: {key}: ")
    assert "cannot be filled in\nhint: " in text


PLUGIN = "from difftrain import Loss, hookimpl\n"


@pytest.mark.parametrize("text", ["~/mine.py", "{env:HOME}/mine.py", "{output_dir}/mine.py"])
def test_a_plugin_file_is_found_where_it_is_meant(command, text, tmp_path):
    (tmp_path / "home" / "mine.py").write_text(PLUGIN)
    (tmp_path / "config.json").write_text(json.dumps(run_values(plugins=[text], output_dir="~", optimizer="x")))
    (tmp_path / "datasets.json").write_text(json.dumps(pair()))
    assert command("--config", "config.json").err.startswith("error: optimizer: unknown optimizer 'x'")


@pytest.mark.parametrize("text", ["~/run.json", "{env:HOME}/run.json"])
def test_the_run_file_is_found_where_it_is_meant(command, text, tmp_path):
    (tmp_path / "home" / "run.json").write_text('{"sed": 1}')
    assert f"{tmp_path / 'home' / 'run.json'}:1: unknown key 'sed'" in command(f"--config={text}").err


def test_the_run_file_is_checked_like_every_path(command):
    assert command("--config", "$HOME/run.json").err == (
        'error: flag --config: "$HOME/run.json": $HOME cannot be filled in\n'
        "hint: write {env:HOME} for the environment variable\n"
    )


LEFT_OVER = [
    ("$HOME/x", "$HOME", "write {env:HOME} for the environment variable"),
    ("a/${HOME}", "${HOME}", "write {env:HOME} for the environment variable"),
    ("a/{HOME}", "{HOME}", "placeholders here: "),
    ("a/{model}", "{model}", "placeholders here: "),
    ("a/{}", "{}", "placeholders here: "),
    ("a/{env:}", "{env:}", "placeholders here: "),
    ("a/{env:A-B}", "{env:A-B}", "placeholders here: "),
    ("a/${env:HOME}", "${env:HOME}", "placeholders here: "),
]


@pytest.mark.parametrize(("text", "part", "hint"), LEFT_OVER)
@pytest.mark.parametrize("key", [*RUN_PATHS, "data_backend_config", "validation_prompt_library"])
def test_what_is_not_filled_in_is_named_with_its_key_and_the_remedy(key, text, part, hint):
    message = error_of(run_values(**{key: text}))
    assert f'config.json:1: {key}: "{text}": {part} cannot be filled in\nhint: {hint}' in message


@pytest.mark.parametrize("key", ["instance_data_dir", "cache_dir_vae", "cache_dir"])
def test_what_is_not_filled_in_names_the_dataset(key):
    message = error_of(datasets=[target_set(), target_set(id="b", **{"instance_data_dir": "b", key: "$DATA/b"})])
    assert message == (
        f"datasets.json:1: dataset 'b': {key}: \"$DATA/b\": $DATA cannot be filled in\n"
        "hint: write {env:DATA} for the environment variable"
    )


def test_what_is_not_filled_in_names_the_generator():
    message = error_of(datasets=[target_set(conditioning=BLUR | {"instance_data_dir": "$DATA/b"})])
    assert message.startswith("dataset 'edits': conditioning 'superresolution': instance_data_dir: \"$DATA/b\": $DATA")


def test_a_flag_that_is_not_filled_in_is_named_as_a_flag():
    assert error_of(output_dir="$X/y").startswith('flag --output_dir: output_dir: "$X/y": $X cannot be filled in')


def test_the_output_folder_cannot_lie_in_itself():
    message = error_of(run_values(output_dir="{output_dir}/x", cache_dir="{output_dir}/c"))
    assert message == (
        'config.json:1: output_dir: "{output_dir}/x": {output_dir} cannot be filled in\n'
        "hint: placeholders here: {model_family}, {model_flavour}, and {env:NAME} for an environment variable"
    )


def test_an_id_is_known_in_dataset_entries_alone():
    assert "{id} cannot be filled in" in error_of(run_values(output_dir="out/{id}"))


def test_the_home_of_nobody_is_an_error():
    message = error_of(run_values(cache_dir="~nobody-of-this-name/x"))
    assert '"~nobody-of-this-name/x": ~nobody-of-this-name is not a home folder on this machine\nhint: ' in message


ESCAPES = [
    (r"C:\temp\new", "a tab"),
    (r"data\new", "a line break"),
    (r"D:\backup", "a backspace"),
    (r"E:\files", "a form feed"),
    (r"E:\results", "a line break"),
    (r"F:\0", "a control character"),
    (r"F:\v1", "a control character"),
]


@pytest.mark.parametrize(("written", "what"), ESCAPES)
@pytest.mark.parametrize("key", ["output_dir", "pretrained_model_name_or_path", "data_backend_config"])
def test_a_backslash_that_became_another_character_is_noticed(key, written, what):
    text = json.dumps(run_values(**{key: "HERE"})).replace("HERE", written)
    message = error_of(text)
    assert f" contains {what}" in message
    assert "hint: write a backslash twice in JSON; or write / between folders" in message


def test_a_backslash_that_is_gone_is_noticed():
    message = error_of(json.dumps(run_values(output_dir="HERE")).replace("HERE", r"C:\data"))
    assert 'config.json:1: output_dir: "C:data" has lost the backslash after its drive letter' in message


def test_a_backslash_of_a_dataset_is_noticed():
    text = json.dumps([target_set(instance_data_dir="HERE")]).replace("HERE", r"C:\temp")
    assert "dataset 'edits': instance_data_dir: 'C:\\temp' contains a tab" in error_of(datasets=text)


@pytest.mark.parametrize("text", [r"C:\\temp\\new", "C:/temp/new"])
def test_a_path_with_two_backslashes_or_slashes_is_kept(text):
    values = json.dumps(run_values(output_dir="HERE")).replace("HERE", text)
    assert str(plan(values).config.output_dir) == json.loads(f'"{text}"')


@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("key", ["output_dir", "cache_dir", "data_backend_config"])
def test_an_empty_path_is_an_error_where_there_must_be_one(key, text):
    assert f'config.json:1: {key}: must be a path, got "{text}"' in error_of(run_values(**{key: text}))


@pytest.mark.parametrize("value", ["", None, "none", "None", "null", "false", False])
@pytest.mark.parametrize("key", ["validation_prompt_library", "pretrained_model_name_or_path"])
def test_an_optional_path_may_be_turned_off_in_any_spelling(key, value):
    assert getattr(plan(run_values(**{key: value})).config, key) is None


@pytest.mark.parametrize("value", ["", None, "none", "null", False, "false"])
def test_resuming_may_be_turned_off_in_any_spelling(value):
    assert plan(run_values(resume_from_checkpoint=value)).config.resume_from_checkpoint == "none"


@pytest.mark.parametrize("value", ["", None, "none"])
def test_an_empty_cache_folder_of_a_dataset_is_the_default(value):
    data = plan(datasets=[target_set(cache_dir_vae=value), TEXT | {"cache_dir": value}]).data
    assert (data.by_id("edits").latents_folder, data.text_folder) == (Path("cache/vae/edits"), Path("cache/text"))


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_data_folder_is_missing(value):
    assert "instance_data_dir" in error_of(datasets=[target_set(instance_data_dir=value)])


def test_bytes_that_are_no_text_are_reported_and_not_a_traceback():
    message = error_of(output_dir="caf\udce9")
    assert message == r"flag --output_dir: output_dir must be a text in UTF-8, got 'caf\udce9'"


def test_half_a_character_in_a_dataset_is_reported():
    message = error_of(datasets=[target_set(instance_data_dir="a\ud800")])
    assert message.startswith("datasets.json:1: dataset 'edits': instance_data_dir must be a text in UTF-8")


@given(PLAIN)
def test_a_path_without_anything_to_fill_in_is_kept(text):
    assert expand_path(text, {}) == text


@given(st.text(min_size=1))
def test_any_text_is_a_path_or_one_error(text):
    with contextlib.suppress(ConfigError):
        assert not any(ord(character) < 32 for character in expand_path(text, {"id": "i"}))


def test_a_reference_set_has_its_own_id_in_its_paths():
    datasets = [target_set(conditioning_data="refs"), reference_set(cache_dir_vae="x/{id}")]
    assert plan(datasets=datasets).data.by_id("refs").latents_folder == Path("x/refs")


def test_an_id_with_a_placeholder_is_filled_in_before_it_fills_in_others():
    data = plan(datasets=[target_set(id="set-{model_flavour}", cache_dir_vae="x/{id}")]).data
    assert data.by_id("set-kontext").latents_folder == Path("x/set-kontext")


def test_plan_run_of_a_wrong_plugin_path_is_a_config_error():
    Path("config.json").write_text(json.dumps(run_values(plugins=["$X/mine.py"])))
    with pytest.raises(ConfigError, match=r'plugins: "\$X/mine.py": \$X cannot be filled in'):
        plan_run(Path("config.json"), {})
