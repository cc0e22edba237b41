"""An output folder belongs to one run at a time, and its files follow the umask."""

import json
import os
import stat

import pytest
from ending_plugins import observe
from forked_runs import ForkedRun
from long_runs import ADAPTER, changed, checkpoints, killed, steps_of, wait_until

from conftest import run_in


@pytest.fixture
def arguments(edit_pairs):
    return (*edit_pairs.kontext, "--data_backend_config", edit_pairs())


def test_a_second_run_in_the_same_folder_is_refused_and_disturbs_nothing(command, edit_pairs, arguments):
    process = ForkedRun(edit_pairs.folder, (*arguments, "--max_train_steps", 100_000))
    wait_until(process, lambda: (edit_pairs.output / "metrics.jsonl").exists() and len(steps_of(edit_pairs.output)) > 1)
    try:
        second = command(*arguments, "--max_train_steps", 1, "--resume_from_checkpoint", "none")
        assert second.status == 2
        assert f"error: output_dir output is in use by another run (process {process.pid})\nhint:" in second.err
        assert (edit_pairs.output / "metrics.jsonl").exists()
        assert not (edit_pairs.output / "previous-1").exists()
    finally:
        assert killed(process)
    # the system releases a killed run's lock
    after = command(*arguments, "--max_train_steps", 1)
    assert after.status == 0, after.err


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_every_file_of_a_run_follows_the_umask(command, edit_pairs, arguments, umask, mode):
    before = os.umask(umask)
    try:
        assert command(*arguments, "--max_train_steps", 1).status == 0
    finally:
        os.umask(before)
    files = [path for path in edit_pairs.output.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of this many KiB at a folder of that name; skip if that is not allowed."""
    import subprocess

    mounted = []

    def mount(name, kib):
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("this machine lets nobody mount a disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_disk_that_is_full_at_a_checkpoint_is_one_error_and_earlier_ones_are_whole(
    command, edit_pairs, arguments, small_disk
):
    small_disk("output", 1200)
    ended = command(*arguments, "--max_train_steps", 30, "--checkpoint_step_interval", 1)
    assert ended.status == 2
    assert ended.err.count("error:") == 1
    assert "cannot be written; earlier checkpoints are intact (no space left on device)\nhint: free some" in ended.err
    assert "--resume_from_checkpoint latest" in ended.err
    assert not list(edit_pairs.output.glob(".checkpoint-*"))
    saved = checkpoints(edit_pairs.output)
    assert 1 <= len(saved) < 30
    for name in saved:
        resuming = {"resume_from_checkpoint": f"output/{name}", "max_train_steps": 1, "output_dir": "elsewhere"}
        again = run_in(edit_pairs.folder, *changed((*arguments, "--max_train_steps", 1), **resuming))
        assert again.status == 0, again.err


def test_a_disk_without_room_for_a_checkpoint_is_reported_before_the_first_step(
    command, edit_pairs, arguments, small_disk
):
    small_disk("output", 100)
    ended = command(*arguments, "--max_train_steps", 30)
    assert ended.status == 2
    assert "not enough room on the disk of output: 264 KiB needed" in ended.err
    assert "the adapter at the end 44 KiB" in ended.err
    assert "output_dir" in ended.err
    assert not (edit_pairs.output / "metrics.jsonl").exists()


def test_a_disk_that_is_full_at_a_preview_does_not_end_the_run(command, edit_pairs, arguments, small_disk):
    assert command(*arguments, "--max_train_steps", 1).status == 0
    small_disk("output/validation", 8)
    drawing = {"validation_steps": 1, "num_eval_images": 2, "validation_num_inference_steps": 1}
    ended = command(*changed((*arguments, "--max_train_steps", 3), validation_resolution=256, **drawing))
    assert ended.status == 0, ended.err
    assert ended.err.count("warning: the validation failed") == 1
    assert "no space left on device" in ended.err
    assert not [path for path in (edit_pairs.output / "validation").rglob("*.png") if path.stat().st_size == 0]
    assert (edit_pairs.output / ADAPTER).is_file()


def test_a_full_disk_cuts_no_line_of_the_metrics(command, edit_pairs, arguments, small_disk):
    folder = small_disk("output", 400)
    filler = folder / "filler"
    fill = f"os.system('head -c 1M /dev/zero > {filler} 2>/dev/null')"
    ended = command(*observe(edit_pairs.folder, (*arguments, "--max_train_steps", 40), [2], fill))
    assert ended.status == 2
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()][:2] == [1, 2]


def test_an_earlier_run_that_cannot_be_moved_is_one_error(command, edit_pairs, arguments, small_disk):
    edit_pairs.output.mkdir()
    small_disk("output/validation", 8)
    ended = command(*arguments, "--max_train_steps", 1)
    assert ended.status == 2
    assert "error: output_dir output: output/validation cannot be moved into output/previous-1" in ended.err


def test_a_run_that_ended_while_this_one_prepared_its_data_is_gone_on_with(command, edit_pairs, arguments, monkeypatch):
    # it was once set aside, and all of its steps were trained again
    from difftrain.startup import prepare_run

    original = prepare_run.prepare_samples
    started = []

    def meanwhile(*rest, **options):
        if not started:
            started.append(True)
            assert command(*arguments, "--max_train_steps", 2).status == 0
        return original(*rest, **options)

    monkeypatch.setattr(prepare_run, "prepare_samples", meanwhile)
    ended = command(*arguments, "--max_train_steps", 3)
    assert ended.status == 0, ended.err
    assert "checkpoint-2 at step 2" in ended.err
    assert not (edit_pairs.output / "previous-1").exists()


def test_a_name_that_no_disk_has_is_one_error(command, arguments):
    ended = command(*arguments, "--max_train_steps", 1, "--output_dir", "x" * 300)
    assert ended.status == 2
    assert "output_dir" in ended.err
    assert "file name too long" in ended.err


def test_a_probability_of_almost_nothing_is_reported_and_not_waited_for(command, edit_pairs):
    datasets = edit_pairs(probability=1e-12)
    for program in ((), ("check",)):
        ended = command(
            *program, *edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", 1
        )  # fmt: skip
        assert ended.status == 2
        assert "an epoch shows 4e-12 of 4 samples on average" in ended.err
