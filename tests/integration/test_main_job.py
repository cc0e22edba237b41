"""The main job as a newcomer types it: one command, real photographs, an adapter and images at the end."""

import json
from pathlib import Path

import pytest
from PIL import Image

import difftrain.demo
from conftest import read_metrics

DEMO = ("--model", "flux", "--flavour", "kontext", "--demo")
SHORT = ("--max_train_steps=28", "--validation_steps=28", "--validation_num_seeds=1")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, request):
    """Run the demo once for the tests of this file; return (folder, how it ended)."""
    from conftest import run_in

    folder = tmp_path_factory.mktemp("demo")
    return folder, run_in(folder, *DEMO, *SHORT)


def test_demo_ends_with_an_adapter_and_names_the_sheet_last(demo):
    folder, ended = demo
    assert ended.status == 0, ended.err
    assert (folder / "output/demo/pytorch_lora_weights.safetensors").stat().st_size > 10_000
    for told in ("adapter:", "checkpoints:", "images:", "for a real run"):
        assert told in ended.err + ended.out
    assert ended.err.rstrip().endswith("output/demo/validation/step-000028/sheet.png")


def test_demo_sharpens_photographs_that_it_never_trained_on(demo):
    """The whole demo, ten times as long, gains 1.3 dB over its input; this shows that the run is on its way there."""
    folder, _ = demo
    first, last = (line for line in read_metrics(folder / "output/demo") if "psnr" in line)
    assert (first["step"], last["step"]) == (0, 28)
    assert last["psnr"] > first["psnr"] + 0.3
    assert last["psnr"] > last["psnr_reference"]
    assert last["fixed_loss"] < 0.8 * first["fixed_loss"]


def test_demo_draws_reference_base_result_and_target_of_what_is_held_out(demo):
    folder, _ = demo
    images = sorted((folder / "output/demo/validation/step-000028").glob("*.png"))
    assert [path.stem for path in images if path.stem != "sheet"] == [
        f"held-out-{path.stem}" for path in sorted((Path(difftrain.demo.__file__).parent / "held_out").glob("*.jpg"))
    ]
    with Image.open(folder / "output/demo/validation/step-000028/sheet.png") as sheet:
        assert sheet.width > 4 * 256


def test_demo_run_again_starts_over_keeps_the_old_run_and_encodes_nothing(demo):
    from conftest import run_in

    folder, _ = demo
    quick = ("--max_train_steps=1", "--validation_steps=0", "--validation_on_startup=false")
    again = run_in(folder, *DEMO, "--resume_from_checkpoint=none", *quick)
    assert again.status == 0, again.err
    assert "caches: complete, nothing to encode" in again.err
    assert "encode images" not in again.err
    assert "make photos" not in again.err
    assert (folder / "output/demo/previous-1/checkpoint-28").is_dir()
    assert (folder / "output/demo/checkpoint-1").is_dir()


def test_switching_a_dev_run_to_kontext_is_one_flag(command, edit_pairs):
    datasets = edit_pairs(references=None)
    arguments = ("--data_backend_config", datasets, *edit_pairs.fast, "--max_train_steps", 2)
    for flavour in ("dev", "kontext"):
        ended = command("--model", "flux", "--flavour", flavour, *arguments, "--output_dir", flavour)
        assert ended.status == 0, ended.err


def test_kontext_without_any_references_trains(command, edit_pairs):
    datasets = edit_pairs(references=None)
    ended = command(*edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", 3)
    assert ended.status == 0, ended.err
    assert len(read_metrics(edit_pairs.output)) == 3


def test_dev_refuses_references_and_names_the_flavour_that_takes_them(command, edit_pairs):
    dev = ("--model", "flux", "--flavour", "dev", *edit_pairs.fast)
    ended = command(*dev, "--data_backend_config", edit_pairs(), "--max_train_steps", 2)
    assert ended.status == 2
    assert "kontext" in ended.err


def test_loose_references_of_mixed_sizes_train_in_batches_of_three(command, edit_pairs):
    sizes = {"sizes": [(64, 64), (96, 64), (64, 112)], "edit_sizes": [(64, 64), (80, 64)]}
    datasets = edit_pairs(count=9, conditioning_type="reference_loose", **sizes)
    ended = command(
        *edit_pairs.kontext, "--data_backend_config", datasets, "--train_batch_size", 3, "--num_train_epochs", 2
    )
    assert ended.status == 0, ended.err
    assert sum(line["samples"] for line in read_metrics(edit_pairs.output)) == 18


@pytest.mark.parametrize("sampling", ["random", "combined"])
def test_two_reference_sets_train_in_batches(command, edit_pairs, sampling):
    datasets = edit_pairs(count=6, reference_sets=2)
    ended = command(
        *edit_pairs.kontext, "--data_backend_config", datasets, "--train_batch_size", 3, "--num_train_epochs", 2,
        "--conditioning_multidataset_sampling", sampling,
    )  # fmt: skip
    assert ended.status == 0, ended.err


def test_a_second_run_encodes_nothing_and_a_caption_edit_encodes_one_caption(command, edit_pairs):
    datasets = edit_pairs()
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", 1)
    assert "encode images 8" in command(*arguments).err
    again = command(*arguments, "--resume_from_checkpoint", "none")
    assert "nothing to encode" in again.err
    (edit_pairs.folder / "edits" / "0001.txt").write_text("another instruction")
    edited = command(*arguments, "--resume_from_checkpoint", "none").err
    assert "encode captions 1:" in edited
    assert "encode images" not in edited


def test_changed_bytes_under_the_same_name_are_encoded_again(command, edit_pairs):
    datasets = edit_pairs()
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", 1)
    command(*arguments)
    image = edit_pairs.folder / "references" / "0002.png"
    Image.open(image).transpose(Image.Transpose.ROTATE_180).save(image)
    assert "encode images 1:" in command(*arguments, "--resume_from_checkpoint", "none").err


def test_a_corrupt_latents_entry_is_made_again_and_said_once(command, edit_pairs):
    datasets = edit_pairs()
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", 6)
    command(*arguments)
    entry = sorted((edit_pairs.folder / "cache/vae").rglob("*.safetensors"))[0]
    entry.write_bytes(entry.read_bytes()[:-7])
    again = command(*arguments, "--resume_from_checkpoint", "none")
    assert again.status == 0, again.err
    assert again.err.count("1 damaged cache entr") == 1
    assert "encode images 1:" in again.err


def test_metrics_have_each_step_once_also_after_resuming(command, edit_pairs):
    datasets = edit_pairs()
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, "--checkpoint_step_interval", 2)
    command(*arguments, "--max_train_steps", 4)
    metrics = edit_pairs.output / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + json.dumps({"step": 5, "loss": 1.0}) + "\n")
    command(*arguments, "--max_train_steps", 6)
    assert [line["step"] for line in read_metrics(edit_pairs.output)] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_are_rotated(command, edit_pairs):
    ended = command(
        *edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 5,
        "--checkpoint_step_interval", 1, "--checkpoints_total_limit", 2,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert sorted(path.name for path in edit_pairs.output.glob("*checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
