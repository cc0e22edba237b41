"""What a user's ``lycoris_config`` file may say, and what is said of its faults. No model is needed."""

import json

import pytest

from difftrain.errors import ConfigError
from difftrain.model.lycoris.adapter import Lycoris
from difftrain.model.lycoris.choose_modules import Part, choose_modules
from difftrain.model.lycoris.lycoris_file import Change, LycorisFile, read_lycoris_file

IN_THE_WILD = """{
  "bypass_mode": true, "algo": "LoKr", "multiplier": 1.0, "full_matrix": true, "linear_dim": 10000,
  "linear_alpha": 1, "factor": 16,
  "apply_preset": {
    "target_module": ["Attention", "FeedForward"],
    "module_algo_map": {"Attention": {"factor": 8}, "FeedForward": {"factor": 4, "algo": "loha", "dim": 16}},
  }, // a comment
}"""


def read(tmp_path, content):
    path = tmp_path / "lycoris.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_lycoris_file(path)


def problems_of(tmp_path, content):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    where = f"lycoris_config {tmp_path / 'lycoris.json'}: "
    assert all(text.startswith(where) for text in caught.value.problems), caught.value.problems
    return [text.removeprefix(where) for text in caught.value.problems]


def test_a_users_file_is_read_unchanged(tmp_path):
    found = read(tmp_path, IN_THE_WILD)
    assert found.default == Change(algo="lokr", dim=10000, alpha=1, factor=16, full_matrix=True)
    assert found.classes == ("Attention", "FeedForward")
    assert found.by_class["Attention"] == Change(algo="lokr", dim=10000, alpha=1, factor=8, full_matrix=True)
    assert (found.by_class["FeedForward"].algo, found.by_class["FeedForward"].dim) == ("loha", 16)


@pytest.mark.parametrize(
    "case",
    [
        ({"algo": "lokrr"}, "algo 'lokrr' is not supported; did you mean 'lokr'? known: lokr, loha, lora, locon, full"),
        ({"algo": "boft"}, "algo 'boft' is not supported; known: lokr, loha, lora, locon, full"),
        ({"linear_dimm": 4}, "unknown key 'linear_dimm'; did you mean 'linear_dim'?"),
        ({"linear_dim": 0}, "linear_dim must be at least 1, got 0"),
        ({"linear_dim": True}, "linear_dim must be a whole number, got true"),
        ({"dora_wd": True}, "dora_wd true is not supported; leave it out"),
        ({"rank_dropout": 0.1}, "rank_dropout 0.1 is not supported; leave it out"),
        ({"multiplier": 0}, "multiplier must be a number other than 0, got 0"),
        ({"target_module": ["Attention"]}, "target_module belongs into apply_preset: {...}"),
        ({"apply_preset": []}, "apply_preset must be an object, got []"),
        (
            {"apply_preset": {"target_modul": [], "target_name": "a"}},
            "apply_preset.target_name must be a list of texts, got \"a\"",
            "apply_preset: unknown key 'target_modul'; did you mean 'target_module'?",
        ),
        (
            {"apply_preset": {"module_algo_map": {"Attention": {"algo": "lokrr"}}}},
            "apply_preset.module_algo_map.Attention: algo 'lokrr' is not supported; did you mean 'lokr'? "
            "known: lokr, loha, lora, locon, full",
        ),
        ([], "must be an object {...}"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path, case):
    content, *problems = case
    assert problems_of(tmp_path, content) == problems


def test_keys_that_ask_for_nothing_are_no_fault(tmp_path):
    asked = {"dora_wd": False, "rank_dropout": 0, "use_tucker": True, "conv_dim": 4, "linear_alpha": None}
    found = read(tmp_path, asked)
    assert found.default == Change(algo="lokr", dim=4, alpha=1)


def test_all_faults_are_told_together(tmp_path):
    found = problems_of(tmp_path, {"algo": "x", "factr": 2, "apply_preset": {"target_name": ["*.attn"], "exclude": []}})
    assert len(found) == 4
    assert "'*.attn' is no regular expression" in found[-1]
    assert "use_fnmatch" in found[-1]


def test_a_file_that_is_not_json_is_named_with_its_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^lycoris_config: .*lycoris\.json:1: "):
        read(tmp_path, "{algo lokr}")


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    from importlib import metadata

    from difftrain.model.precision import optional_package

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(optional_package, "version", absent)
    (text,) = Lycoris().check()
    assert text.startswith("lora_type 'lycoris' needs the package lycoris-lora; install it with `pip install")


PARTS = [
    Part("", "Model", False),
    Part("a", "Block", False),
    Part("a.attn", "Attention", False),
    Part("a.attn.q", "Linear", True),
    Part("a.attn.norm", "Norm", False),
    Part("a.out", "Linear", True),
    Part("last", "Linear", True),
]


def chosen(**asked):
    file = LycorisFile(default=Change(), **asked)
    return {name: how.change for name, how in choose_modules(PARTS, file, where="file", old_names={}).items()}


def test_the_innermost_class_decides():
    one, other = Change(factor=2), Change(factor=4)
    found = chosen(classes=("Block", "Attention"), by_class={"Block": one, "Attention": other})
    assert found == {"a.attn.q": other, "a.out": one}


def test_excluded_names_are_left_out():
    assert chosen(classes=("Block",), excluded=("a.attn",)).keys() == {"a.out"}


def test_a_class_with_the_name_of_a_linear_layer_takes_each():
    assert chosen(classes=("Linear",)).keys() == {"a.attn.q", "a.out", "last"}


def test_an_old_name_that_the_model_has_itself_stays(tmp_path):
    file = LycorisFile(default=Change(), classes=("Attention",))
    assert choose_modules(PARTS, file, where="", old_names={"Attention": "Block"}).keys() == {"a.attn.q"}
    renamed = LycorisFile(default=Change(), classes=("OldBlock",))
    assert choose_modules(PARTS, renamed, where="", old_names={"OldBlock": "Block"}).keys() == {"a.attn.q", "a.out"}
