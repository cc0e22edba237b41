"""Runs that resume with other validations, or from an earlier step, compare only comparable measurements."""

import json
import re

import pytest
from long_runs import changed
from PIL import Image

from conftest import read_metrics

IMAGES = {
    "max_train_steps": 2, "validation_steps": 2, "validation_on_startup": "true", "num_eval_images": 2,
    "validation_num_inference_steps": 1, "validation_resolution": 64, "checkpoint_step_interval": 2,
}  # fmt: skip


@pytest.fixture
def arguments(edit_pairs):
    """Write a run with pairs to train on, and two more sets of the same size to hold out."""
    entries = json.loads(edit_pairs(count=6).read_text())
    for name in ("seen", "unseen"):
        folder = edit_pairs.folder / name
        folder.mkdir()
        for index in range(6):
            with Image.open(edit_pairs.folder / "edits" / f"{index:04}.png") as image:
                image.transpose(Image.Transpose.ROTATE_90 if name == "seen" else Image.Transpose.ROTATE_180).save(
                    folder / f"{index:04}.png"
                )
        blur = {"type": "superresolution", "captions": f"sharpen what is {name}"}
        entries.append({"id": name, "instance_data_dir": name, "resolution": 64, "conditioning": blur})
    datasets = edit_pairs.folder / "datasets.json"
    datasets.write_text(json.dumps(entries))
    return changed((*edit_pairs.kontext, "--data_backend_config", str(datasets)), **IMAGES)


def steps_told(ended, start):
    """Return the steps that a line of the closing words compares."""
    assert ended.status == 0, ended.err
    return [
        int(step)
        for line in ended.err.splitlines()
        if line.startswith(start)
        for step in re.findall(r"at step (\d+)", line)
    ]


def test_losses_of_samples_that_were_measured_before_a_change_are_not_told_beside_those_after(command, arguments):
    first = command(*changed(arguments, eval_dataset_id="seen"))
    assert steps_told(first, "loss on the same") == [0, 2]
    second = command(*changed(arguments, eval_dataset_id="unseen", max_train_steps=4))
    assert steps_told(second, "loss on the same") == [4]


@pytest.mark.parametrize("other", [{"flux_guidance_value": 4}, {"vae_dtype": "bf16"}])
def test_losses_that_the_model_was_asked_for_otherwise_are_not_compared(command, arguments, other):
    first = command(*changed(arguments, eval_dataset_id="seen"))
    assert steps_told(first, "loss on the same") == [0, 2]
    second = command(*changed(arguments, eval_dataset_id="seen", max_train_steps=4, **other))
    assert steps_told(second, "loss on the same") == [4]


@pytest.mark.parametrize(
    "other", [{"validation_num_seeds": 2}, {"validation_num_inference_steps": 2}, {"validation_seed": 1}]
)
def test_images_that_were_drawn_differently_are_not_compared(command, arguments, other):
    first = command(*changed(arguments, eval_dataset_id="seen"))
    assert steps_told(first, "PSNR") == [0, 2]
    second = command(*changed(arguments, eval_dataset_id="seen", max_train_steps=4, **other))
    assert steps_told(second, "PSNR") == [4]
    assert steps_told(second, "loss on the same") == [0, 2, 4]


def test_what_stays_the_same_is_compared_across_a_resume(command, arguments):
    command(*changed(arguments, eval_dataset_id="seen"))
    second = command(*changed(arguments, eval_dataset_id="seen", max_train_steps=4, learning_rate=2e-3))
    assert steps_told(second, "PSNR")[0] == 0
    assert steps_told(second, "PSNR")[-1] == 4
    assert steps_told(second, "loss on the same") == [0, 2, 4]


def test_images_of_steps_that_are_done_again_are_kept_and_not_taken_for_new_ones(command, arguments, edit_pairs):
    assert command(*changed(arguments, max_train_steps=6)).status == 0
    sheet = edit_pairs.output / "validation" / "step-000006" / "sheet.png"
    before = sheet.read_bytes()
    back = command(*changed(arguments, max_train_steps=4, resume_from_checkpoint="checkpoint-2", learning_rate=1e-2))
    assert back.status == 0, back.err
    assert "validation/step-000004/sheet.png" in back.err
    assert (edit_pairs.output / "previous-1/validation/step-000006/sheet.png").read_bytes() == before
    assert (edit_pairs.output / "validation/step-000000/sheet.png").is_file()


def test_held_out_images_that_nothing_looks_at_are_not_encoded(command, arguments):
    ended = command(*changed(arguments, eval_dataset_id="seen,unseen", num_eval_images=8))
    assert ended.status == 0, ended.err
    assert "encode images 20:" in ended.err  # six pairs to train on, four to measure the loss on
    again = command(*changed(arguments, eval_dataset_id="seen,unseen", num_eval_images=8, max_train_steps=4))
    assert "nothing to encode" in again.err


def test_metrics_name_what_was_measured(command, arguments, edit_pairs):
    command(*changed(arguments, eval_dataset_id="seen"))
    start, end = (line for line in read_metrics(edit_pairs.output) if "psnr" in line)
    assert (start["fixed_loss_on"], start["psnr_on"]) == (end["fixed_loss_on"], end["psnr_on"])


def test_a_damaged_held_out_image_is_reported_before_the_first_step(command, arguments, edit_pairs):
    datasets = edit_pairs.folder / "datasets.json"
    # made when it is drawn: otherwise the start reads every image
    datasets.write_text(datasets.read_text().replace('"superresolution"', '"superresolution", "generate": "ondemand"'))
    image = edit_pairs.folder / "seen" / "0005.png"
    content = bytearray(image.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    image.write_bytes(content)
    ended = command(*changed(arguments, eval_dataset_id="seen", num_eval_images=6, validation_on_startup="false"))
    assert ended.status == 2
    assert "0005.png" in ended.err
    assert "step 1/" not in ended.err
    assert "load text encoders" not in ended.err


def test_the_loss_is_measured_on_every_held_out_set(command, arguments, edit_pairs):
    ended = command(*changed(arguments, eval_dataset_id="seen,unseen"))
    assert ended.status == 0, ended.err
    for name in ("seen", "unseen"):
        assert list((edit_pairs.folder / "cache/vae" / name).rglob("*.safetensors")), name


def test_without_validation_held_out_images_are_not_encoded(command, arguments):
    off = {"validation_steps": 0, "validation_on_startup": "false"}
    ended = command(*changed(arguments, eval_dataset_id="seen", **off))
    assert ended.status == 0, ended.err
    assert "encode images 24:" in ended.err  # the six pairs of edits and the six of "unseen"
