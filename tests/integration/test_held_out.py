"""A run with a held-out set, stopped and resumed: what it trains on, draws, measures and reports."""

import json

import pytest
from PIL import Image

from conftest import EditPairs, read_metrics, run_in
from difftrain.steps import step

IMAGES = {
    "eval_dataset_id": "edits", "num_eval_images": 2, "validation_steps": 2, "validation_on_startup": "true",
    "validation_num_seeds": 2, "validation_num_inference_steps": 1, "validation_resolution": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run two steps, then two more; return (folder, result of check, result of the run, samples of all steps)."""
    folder = tmp_path_factory.mktemp("held-out")
    pairs = EditPairs(folder)
    datasets = pairs(count=3)
    entries = json.loads(datasets.read_text())
    blur = {"type": "superresolution", "captions": "sharpen"}
    trained = {"id": "trained", "instance_data_dir": "edits-2", "resolution": 64, "conditioning": blur}
    datasets.write_text(json.dumps([*entries, trained]))
    other = EditPairs(folder / "other")
    other(count=3, references=None, edit_sizes=[(80, 64)])
    (folder / "other" / "edits").rename(folder / "edits-2")
    flags = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True))
    flags |= {f"--{key}": value for key, value in IMAGES.items()} | {"--data_backend_config": datasets}
    arguments = [part for pair in flags.items() for part in pair]
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        batch_loss = step.batch_loss
        patch.setattr(
            step, "batch_loss", lambda run, batch, noise: shown.extend(batch.keys) or batch_loss(run, batch, noise)
        )
        checked = run_in(folder, "check", *arguments, "--max_train_steps", 4)
        assert checked.status == 0, checked.err
        for steps in (2, 4):
            ended = run_in(folder, *arguments, "--max_train_steps", steps)
            assert ended.status == 0, ended.err
    return folder / "output", checked, ended, shown


def test_check_and_run_name_the_held_out_set(run):
    _, checked, ended, _ = run
    assert "dataset edits: 3 images, 3 samples, held out from training\n" in checked.out
    assert "3 samples are held out: measured and drawn, never trained on\n" in checked.out
    assert "held out from training: edits (3 samples)\n" in ended.err


def test_only_the_other_set_is_trained_on(run):
    *_, shown = run
    assert len(shown) == 4
    assert {name.split("/")[0] for name in shown} == {"trained"}


def test_images_are_of_the_held_out_set_with_every_seed(run):
    output, *_ = run
    names = {path.name for path in (output / "validation" / "step-000004").iterdir()}
    assert names == {"sheet.png"} | {f"edits-000{i}{seed}.png" for i in range(2) for seed in ("", "-seed-2")}


def test_sheet_of_the_resumed_run_has_the_base_column(run):
    output, *_ = run
    sheets = [output / "validation" / f"step-{number:06}" / "sheet.png" for number in (0, 4)]
    widths = [Image.open(sheet).width for sheet in sheets]
    assert widths == [8 + 3 * 264, 8 + 4 * 264]


def test_metrics_have_psnr_of_result_and_reference(run):
    output, *_ = run
    lines = [line for line in read_metrics(output) if "psnr" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:
        measured = {"fixed_loss", "fixed_loss_on", "psnr", "psnr_on", "psnr_reference", "psnr_by_image"}
        assert line.keys() == {"step"} | measured
        assert line["psnr_by_image"].keys() == {"edits-0000", "edits-0001"}
    assert len({line["psnr_reference"] for line in lines}) == 1


def test_closing_words_compare_the_start_with_the_end(run):
    *_, ended, _ = run
    assert "loss on the same 3 held-out samples and noise: " in ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("PSNR")]
    assert line.startswith("PSNR to the target, mean of 2 held-out images x 2 seeds: reference ")
    assert " dB, at step 0 " in line
    assert ", at step 4 " in line
