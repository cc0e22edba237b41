"""``difftrain plan`` predicts a run without a GPU, reads the data for its shapes, and writes nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from forked_runs import ForkedRun

from difftrain.planning.forecast.cards import CARDS, GIB, find_card
from difftrain.plugins.discovery import load_plugins

DEMO = ("--model", "flux", "--flavour", "kontext", "--demo")
FULL_SIZE = ("--model", "flux", "--flavour", "kontext", "--max_train_steps", "2000")


def everything_below(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def alone(tmp_path):
    """Run the command as a process with a home of its own; return what it printed, and check that it wrote nothing."""

    def run(*arguments):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        before = everything_below(tmp_path)
        folders = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR")}
        process = ForkedRun(
            tmp_path, ("plan", *arguments), CUDA_VISIBLE_DEVICES="", PYTHONDONTWRITEBYTECODE="1", **folders
        )
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert everything_below(tmp_path) == before
        return out

    return run


def test_the_demo_has_a_table_its_assumptions_and_the_lines_for_a_card(alone):
    out = alone(*DEMO, "--card", "4090", "--gradient_checkpointing", "true")
    lines = out.splitlines()
    for card in CARDS:
        assert any(line.strip().startswith(card.name) and line.rstrip().endswith("yes") for line in lines), card.name
    assert any(line.strip().startswith("RTX 4090, as written") and "6 of 6" in line for line in lines)
    assert "batch: 8 samples of 128x128 + 128x128 px (the largest of 54 samples)" in out
    assert "64 target + 64 references + 64 text tokens" in out
    assert "steps: 300 on one card" in out
    assert lines[-2:] == ["RTX 4090: write into the run file", '  "gradient_checkpointing": false,']


def test_no_precision_is_recommended_that_the_adapter_cannot_use(alone, command, monkeypatch):
    for quantizer in load_plugins(only=["difftrain"]).registry.all("quantizer").values():
        monkeypatch.setattr(quantizer, "can_dequantize", False)
    found = planned(command, *FULL_SIZE, "--use_dora", "true")
    best = {row["best"]["base_model_precision"] for row in found["cards"] if row["best"]}
    assert best == {"no_change"}
    plain = json.loads(alone(*FULL_SIZE, "--json"))["cards"]
    assert {row["best"]["base_model_precision"] for row in plain} == {"int8-matmul", "fp8-matmul"}


def test_weights_that_are_kept_twice_are_counted_twice(command):
    kept = ("--base_model_precision", "fp8-matmul", "--keep_transposed_weights", "true")
    found = planned(command, *FULL_SIZE, *kept, "--gradient_checkpointing", "true", "--card", "h100")
    (row,) = (row for row in found["cards"] if row["card"] == "H100")
    # 18.5 GiB as docs/benchmarks.md has them for this mode, and 11 of weights
    assert row["as_written"]["peak_gib"] == pytest.approx(29.5, abs=0.7)


def test_json_is_one_object_with_the_same_numbers(alone):
    found = json.loads(alone(*DEMO, "--json"))
    assert (found["status"], found["steps"], found["card"]) == ("ok", 300, "H100")
    assert [row["card"] for row in found["cards"]] == [card.name for card in CARDS]
    assert found["batch"]["tokens"] == {"target": 64, "references": 64, "text": 64}
    for row in found["cards"]:
        assert row["best"]["fits"]
        hours = row["best"]["seconds_per_step"] * 300 / 3600
        assert row["best"]["hours"] == pytest.approx(hours, abs=6e-4)


def test_auto_is_planned_as_each_card_will_take_it(alone):
    found = json.loads(alone(*FULL_SIZE, "--base_model_precision", "auto", "--json"))
    taken = {row["card"]: row["as_written"]["base_model_precision"] for row in found["cards"]}
    assert taken["RTX 3090"] == "int8-matmul"
    assert taken["RTX 4090"] == "fp8-matmul"
    assert taken["H100"] == "no_change"


def test_the_full_size_model_is_planned_without_its_files_and_without_data(alone):
    arguments = (*FULL_SIZE, "--base_model_precision", "int8-quanto", "--json", "--card", "4090")
    found = json.loads(alone(*arguments))
    assert found["trained_weights"] == 26_148_864
    assert found["batch"]["target"] == [1024, 1024]
    assert "config/multidatabackend.json does not exist" in found["batch"]["source"]
    assert found["notes"] == [
        "the model black-forest-labs/FLUX.1-Kontext-dev is taken to have the sizes of the published kontext weights"
    ]
    (row,) = (row for row in found["cards"] if row["card"] == "RTX 4090")
    assert row["best"]["base_model_precision"] == "int8-matmul"
    assert row["as_written"]["recomputing"] == 57
    assert row["as_written"]["compiled"]
    assert found["config"] == {"base_model_precision": "int8-matmul", "gradient_checkpointing": "auto"}


def planned(command, *arguments):
    ended = command("plan", *arguments, "--json")
    assert ended.status == 0, ended.err + ended.out
    assert ended.files == frozenset()
    return ended.json


def test_the_batch_is_the_largest_of_the_data(command, edit_pairs):
    datasets = edit_pairs(4, edit_sizes=[(64, 64), (256, 128)], resolution=96)
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, "--num_train_epochs", "3")
    found = planned(command, *arguments, "--train_batch_size", "2", "--gradient_accumulation_steps", "2")
    checked = command("check", *arguments, "--json").json
    sizes = [list(map(int, size.split("x"))) for size in checked["buckets"]]
    assert found["batch"]["target"] == max(sizes, key=lambda size: size[0] * size[1])
    assert found["batch"]["samples"] == 2
    assert found["steps"] == 3


def test_caches_hold_what_held_out_images_and_validation_prompts_need(command, edit_pairs):
    datasets = edit_pairs(5, edit_sizes=[(64, 64)], resolution=64)
    entries = json.loads((edit_pairs.folder / datasets).read_text())
    trained = {"id": "trained", "instance_data_dir": "trained", "resolution": 64}
    trained["conditioning"] = {"type": "superresolution", "captions": "sharpen"}
    (edit_pairs.folder / datasets).write_text(json.dumps([*entries, trained]))
    shutil.copytree(edit_pairs.folder / "edits", edit_pairs.folder / "trained")
    flags = dict(zip(edit_pairs.kontext[::2], edit_pairs.kontext[1::2], strict=True))
    flags |= {"--data_backend_config": datasets, "--max_train_steps": "4", "--eval_dataset_id": "edits"}
    flags |= {"--validation_steps": "2", "--validation_prompt": "a prompt", "--validation_resolution": "64"}
    arguments = [part for pair in flags.items() for part in pair]
    checked = command("check", *arguments, "--json").json
    needs = planned(command, *arguments)["data"]["caches"]
    assert needs == [need for need in checked["disk"] if not need["what"].startswith("made images")]
    assert {need["what"]: need["files"] for need in needs}["latents of 'edits'"] == 4


def test_a_set_with_larger_batches_of_its_own_gives_the_batch(command, edit_pairs):
    datasets = edit_pairs(4, edit_sizes=[(64, 64)], resolution=64)
    entries = json.loads((edit_pairs.folder / datasets).read_text())
    entries[0]["train_batch_size"] = 4
    (edit_pairs.folder / datasets).write_text(json.dumps(entries))
    found = planned(command, *edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", "4")
    assert found["batch"]["samples"] == 4
    shutil.rmtree(edit_pairs.folder / "edits")  # what cannot be read is planned in the same batches
    found = planned(command, *edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", "4")
    assert found["batch"]["samples"] == 4


def test_the_data_is_told_as_check_tells_it(command, edit_pairs):
    datasets = edit_pairs(4, edit_sizes=[(64, 64), (256, 128)], resolution=96)
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", "4")
    arguments += ("--train_batch_size", "2")
    data = planned(command, *arguments)["data"]
    checked = command("check", *arguments, "--json").json
    for key in ("samples", "batches_per_epoch", "batches_full", "steps_per_epoch"):
        assert data[key] == checked[key]
    buckets = {"x".join(map(str, shape["target"])): shape["samples"] for shape in data["shapes"]}
    assert buckets == checked["buckets"]
    for shape in data["shapes"]:
        width, height = shape["target"]
        # a token is 16x16 pixels
        assert shape["tokens"]["target"] == width * height // 256
        assert shape["tokens"]["references"] == sum(w * h // 256 for w, h in shape["references"])
    # nothing is cached yet, so what is missing is all there will be
    assert data["caches"] == checked["disk"]
    text = command("plan", *arguments).out
    assert "data: 4 samples, " in text
    assert "cache: latents of 'edits': " in text


def test_references_that_a_generator_would_make_count_and_are_not_made(command, edit_pairs):
    datasets = edit_pairs(2, references=None, conditioning={"type": "superresolution", "captions": "sharpen"})
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", "4")
    found = planned(command, *arguments)
    assert found["batch"]["references"] == [found["batch"]["target"]]


def test_an_index_of_an_earlier_scan_is_used_and_left_alone(command, edit_pairs):
    datasets = edit_pairs(2)
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", "4")
    assert command("check", *arguments).status == 0
    planned(command, *arguments)


def test_missing_images_are_told_and_the_resolution_gives_the_shape(command, edit_pairs):
    datasets = edit_pairs(2)
    shutil.rmtree(edit_pairs.folder / "edits")
    found = planned(command, *edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", "4")
    assert found["batch"]["target"] == [64, 64]
    assert "the data cannot be used yet" in found["batch"]["source"]


def test_the_card_of_this_machine_has_the_first_row_and_is_explained(command, monkeypatch):
    from difftrain.training import outlined_run

    own = replace(find_card("4090"), memory=10 * GIB)
    monkeypatch.setattr(outlined_run, "own_card", lambda: (own, None))
    found = planned(command, *FULL_SIZE)
    assert found["card"] == found["cards"][0]["card"] == "RTX 4090, this machine"
    assert found["cards"][0]["available_gib"] == pytest.approx(9.4)
    assert not found["cards"][0]["best"]["fits"]


def test_accumulated_batches_make_a_step_longer(command):
    once, thrice = (planned(command, *DEMO, "--gradient_accumulation_steps", count) for count in (1, 3))
    pairs = zip(once["cards"], thrice["cards"], strict=True)
    assert all(
        b["best"]["seconds_per_step"] == pytest.approx(3 * a["best"]["seconds_per_step"], rel=1e-2) for a, b in pairs
    )


def test_a_precision_that_a_card_lacks_is_said_in_its_row(command):
    ended = command("plan", *FULL_SIZE, "--base_model_precision", "fp8-matmul", "--card", "3090")
    assert "RTX 3090, as written   fp8-matmul: not on this card" in ended.out
    assert '"base_model_precision": "int8-matmul"' in ended.out


def test_what_fits_nowhere_says_how_to_need_less(command):
    ended = command("plan", *FULL_SIZE, "--train_batch_size", "64", "--card", "3090")
    assert ended.status == 0
    assert "RTX 3090: nothing fits" in ended.out
    assert "lower resolution, train_batch_size or lora_rank" in ended.out


def test_an_unknown_card_is_an_error_before_the_config_is_read(command):
    ended = command("plan", "--card", "4080", "--model", "nothing")
    assert (ended.status, ended.out) == (2, "")
    assert 'did you mean "RTX 4090"?' in ended.err


def test_a_mistake_in_the_config_is_one_json_object(command):
    ended = command("plan", *FULL_SIZE, "--lora_rank", "0", "--json")
    assert ended.status == 2
    assert ended.json["status"] == "error"
    assert "lora_rank" in ended.json["problems"][0]


def test_a_family_without_an_outline_says_so(command, tmp_path):
    (tmp_path / "family.py").write_text(
        "from difftrain import hookimpl\n"
        "from difftrain.testing import TinyFamily\n"
        "from difftrain.testing.tiny_family import TinyFlavour\n"
        "class Silent(TinyFamily):\n"
        "    def outline(self, model, flavour):\n"
        "        return None\n"
        "@hookimpl\n"
        "def difftrain_model_families():\n"
        "    return (Silent,)\n"
        "@hookimpl\n"
        "def difftrain_model_flavours():\n"
        "    return (TinyFlavour,)\n"
    )
    flags = ("--plugins", "family.py", "--model", "tiny-test", "--flavour", "base", "--max_train_steps", "3")
    ended = command("plan", *flags)
    assert ended.status == 2
    assert "model family 'tiny-test' cannot describe this model without loading it" in ended.err


def test_the_help_lists_the_command(command):
    assert "difftrain plan [FLAGS]" in command("--help").out
