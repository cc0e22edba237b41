"""Whatever ends a run, what was trained is saved; code that only watches does not end it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ending_plugins import disturb_loss, observe
from forked_runs import ForkedRun
from long_runs import ADAPTER, PATIENCE, changed, checkpoints, steps_of, wait_until

from conftest import EditPairs, read_metrics, run_in

VALIDATION = {"num_eval_images": 1, "validation_num_inference_steps": 1, "validation_resolution": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return (folder, arguments) of a run of six steps, with its adapter in ``whole``."""
    folder = tmp_path_factory.mktemp("ends")
    pairs = EditPairs(folder)
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=5), "--max_train_steps", 6)
    ended = run_in(folder, *arguments, "--output_dir", "whole")
    assert ended.status == 0, ended.err
    return folder, arguments


@pytest.fixture
def run(data, tmp_path):
    """Return the folder, the arguments with a separate output folder, and that folder."""
    folder, arguments = data
    output = tmp_path / "output"
    return folder, changed(arguments, output_dir=output), output


def assert_goes_on(folder, arguments, output):
    """Check that the same command without the disturbance ends with the bytes of an undisturbed run."""
    assert run_in(folder, *arguments).status == 0
    assert (output / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()


def test_a_terminal_that_is_closed_saves_and_ends_with_129(run):
    folder, arguments, output = run
    ended = run_in(folder, *observe(folder, arguments, [3], "os.kill(os.getpid(), signal.SIGHUP)"))
    assert ended.status == 129
    assert "--resume_from_checkpoint latest" in ended.err
    assert checkpoints(output) == ["checkpoint-3"]
    assert_goes_on(folder, arguments, output)


def test_a_run_under_nohup_outlives_its_terminal(run):
    folder, arguments, output = run
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ended = run_in(folder, *observe(folder, arguments, [3], "os.kill(os.getpid(), signal.SIGHUP)"))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended.status == 0, ended.err
    assert checkpoints(output) == ["checkpoint-6"]


def test_an_output_that_nobody_reads_any_more_saves_and_ends_with_141(run, tmp_path):
    folder, arguments, output = run
    (folder / "often.py").write_text("from difftrain.output import console\n\nconsole.LINE_SECONDS = 0.1\n")
    arguments = changed(arguments, max_train_steps=100_000, plugins="./often.py")
    os.mkfifo(tmp_path / "read")
    process = ForkedRun(folder, arguments, errors=tmp_path / "read")
    with (tmp_path / "read").open():
        wait_until(process, lambda: (output / "metrics.jsonl").exists() and len(steps_of(output)) >= 2)
    process.communicate()
    assert process.returncode == 141
    (saved,) = checkpoints(output)
    assert saved == f"checkpoint-{steps_of(output)[-1]}"


def test_an_output_that_is_closed_while_the_run_starts_ends_it_quietly(run, tmp_path):
    folder, arguments, _ = run
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [sys.executable, "-m", "difftrain", *map(str, arguments)], cwd=folder, stderr=writing, stdout=subprocess.PIPE
    )
    os.close(writing)
    assert process.wait(timeout=PATIENCE) == 141
    assert process.stdout.read() == b""


def test_out_of_memory_saves_and_says_what_to_change(run):
    folder, arguments, output = run
    raising = "raise torch.OutOfMemoryError('tried to allocate 2 GiB')"
    ended = run_in(folder, *disturb_loss(folder, arguments, [4], raising))
    assert ended.status == 2
    assert "error: out of memory in step 4: tried to allocate 2 GiB\nhint: " in ended.err
    assert "gradient_checkpointing = true" in ended.err
    assert "Traceback" not in ended.err
    assert "--resume_from_checkpoint latest" in ended.err
    assert checkpoints(output) == ["checkpoint-3"]
    assert_goes_on(folder, arguments, output)


def test_a_bug_saves_and_keeps_its_traceback(run):
    folder, arguments, output = run
    with pytest.raises(ZeroDivisionError):
        run_in(folder, *disturb_loss(folder, arguments, [4], "1 / 0"))
    assert checkpoints(output) == ["checkpoint-3"]
    assert_goes_on(folder, arguments, output)


def test_an_error_while_the_optimizer_writes_saves_nothing_half_new(run, monkeypatch):
    import optimi

    folder, arguments, output = run
    original, calls = optimi.AdamW.step, []

    def breaking(self, *rest, **options):
        calls.append(self)
        original(self, *rest, **options)
        if len(calls) == 4:
            raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(optimi.AdamW, "step", breaking)
        with pytest.raises(RuntimeError, match="in the middle"):
            run_in(folder, *changed(arguments, checkpoint_step_interval=2))
    assert checkpoints(output) == ["checkpoint-2"]


def test_an_image_and_its_cache_entry_that_are_gone_save_and_end_with_one_error(edit_pairs, command):
    folder = edit_pairs.folder
    arguments = (
        *edit_pairs.kontext, "--data_backend_config", edit_pairs(count=30), "--max_train_steps", 30,
    )  # fmt: skip
    ended = command(*observe(folder, arguments, [3], "shutil.rmtree('references'); shutil.rmtree('cache/vae')"))
    assert ended.status == 2
    assert ended.err.count("error:") == 1
    assert "cannot be read as an image (no such file or directory)" in ended.err
    assert checkpoints(edit_pairs.output) == [f"checkpoint-{steps_of(edit_pairs.output)[-1]}"]


@pytest.mark.parametrize("raising", ["raise RuntimeError(result.step)", "raise SystemExit(3)"])
def test_an_observer_that_fails_is_named_once_and_the_run_continues(run, raising):
    folder, arguments, output = run
    ended = run_in(folder, *observe(folder, arguments, [2, 3, 4], raising))
    assert ended.status == 0, ended.err
    assert ended.err.count("warning: observer 'disturbing' of file observing.py failed in step_end") == 1
    assert "observing.py" in ended.err
    assert len(steps_of(output)) == 6
    assert (output / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()


def break_sampler(monkeypatch, error):
    from difftrain import PipelineSampler

    def failing(self, request):
        raise error

    monkeypatch.setattr(PipelineSampler, "__call__", failing)


@pytest.mark.parametrize(
    "error", [RuntimeError("no image"), OSError(28, "No space left on device"), MemoryError()], ids=lambda e: str(e)
)
def test_a_validation_that_fails_is_reported_once_and_the_run_continues(run, monkeypatch, error):
    folder, arguments, output = run
    break_sampler(monkeypatch, error)
    ended = run_in(folder, *changed(arguments, validation_steps=2, validation_on_startup="true", **VALIDATION))
    assert ended.status == 0, ended.err
    assert ended.err.count("warning: the validation failed, and the run continues without it") == 1
    # what was measured before the drawing failed is kept
    assert [line["step"] for line in read_metrics(output) if "fixed_loss" in line] == [0, 2, 4, 6]
    assert (output / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()


def test_an_image_of_the_validation_that_is_gone_does_not_end_the_run(edit_pairs, command):
    arguments = (*edit_pairs.kontext, "--data_backend_config", edit_pairs(count=5), "--max_train_steps", 6)
    arguments = changed(arguments, validation_steps=3, **VALIDATION)
    ended = command(*observe(edit_pairs.folder, arguments, [2], "shutil.rmtree('references')"))
    assert ended.status == 0, ended.err
    assert ended.err.count("warning: the validation failed") == 1
    assert checkpoints(edit_pairs.output) == ["checkpoint-6"]


def test_metrics_that_cannot_be_written_are_reported_once_with_path_and_reason(run):
    folder, arguments, output = run
    spoil = f"os.remove({str(output / 'metrics.jsonl')!r}); os.mkdir({str(output / 'metrics.jsonl')!r})"
    ended = run_in(folder, *observe(folder, arguments, [2], spoil))
    assert ended.status == 0, ended.err
    assert ended.err.count(f"{output / 'metrics.jsonl'} cannot be written (is a directory)") == 1
    assert (output / ADAPTER).is_file()


LATE_OPTIMIZER = """
import numpy
import torch

from difftrain import OptimizerFactory, hookimpl


class Late(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        parameter = self.param_groups[0]["params"][0]
        self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1
        if self.state[parameter]["count"] == {when}:
            self.state[parameter]["odd"] = numpy.float64(1)


class LateFactory(OptimizerFactory):
    name = "late"

    def build(self, parameters, learning_rate):
        return Late(parameters, lr=learning_rate)


@hookimpl
def difftrain_optimizers():
    return (LateFactory,)
"""


def test_a_state_that_cannot_be_saved_is_reported_after_the_first_step(run):
    folder, arguments, output = run
    (folder / "late.py").write_text(LATE_OPTIMIZER.format(when=1))
    ended = run_in(folder, *changed((*arguments, "--plugins", "./late.py"), optimizer="late"))
    assert ended.status == 2
    assert ended.err.count("error:") == 1
    assert "Late keeps something that a checkpoint cannot hold" in ended.err
    assert not (output / "metrics.jsonl").exists()
    assert [path.name for path in output.iterdir() if "checkpoint" in path.name] == []


def test_no_checkpoint_is_written_that_could_not_be_resumed_and_the_adapter_is_kept(run):
    folder, arguments, output = run
    (folder / "late.py").write_text(LATE_OPTIMIZER.format(when=3))
    arguments = changed((*arguments, "--plugins", "./late.py"), optimizer="late", checkpoint_step_interval=2)
    ended = run_in(folder, *arguments)
    assert ended.status == 2
    assert "Late keeps something that a checkpoint cannot hold" in ended.err
    assert checkpoints(output) == ["checkpoint-2"]
    assert not list(output.glob(".checkpoint-*"))
    assert f"the adapter of step 4 is saved as {output / 'adapter-of-step-4.safetensors'}" in ended.err
    assert (output / "adapter-of-step-4.safetensors").stat().st_size > 1000


def test_a_log_that_cannot_be_written_loses_the_words_and_not_the_run(run):
    folder, arguments, output = run
    process = ForkedRun(folder, arguments, errors=Path("/dev/full"))
    process.communicate()
    assert process.returncode == 0
    assert checkpoints(output) == ["checkpoint-6"]


def in_shell(run, command, closing):
    """Return the exit status of a command in a shell that closes some streams before it starts."""
    folder, arguments, _ = run
    typed = f"{sys.executable} -m difftrain {command} {' '.join(map(str, arguments))} {closing}"
    return subprocess.run(typed, shell=True, cwd=folder, timeout=PATIENCE).returncode


def test_streams_that_are_closed_from_the_start_do_not_change_a_training(run):
    assert in_shell(run, "", "<&- >&- 2>&-") == 0
    assert checkpoints(run[2]) == ["checkpoint-6"]


@pytest.mark.parametrize("closing", [">&-", "2>&-"])
def test_one_stream_that_is_closed_from_the_start_changes_nothing(run, closing):
    assert in_shell(run, "check", closing) == 0


def test_an_observer_whose_error_has_no_text_is_named_too(run):
    folder, arguments, _ = run
    raising = "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()"
    ended = run_in(folder, *observe(folder, arguments, [2], raising))
    assert ended.status == 0, ended.err
    assert ended.err.count("warning: observer 'disturbing' of file observing.py failed in step_end") == 1


@pytest.mark.parametrize("raising", ["raise RuntimeError('no')", "raise SystemExit(7)"])
def test_a_plugin_that_cannot_check_the_config_is_one_error_that_names_it(run, raising):
    folder, arguments, _ = run
    text = f"from difftrain import hookimpl\n\n\n@hookimpl\ndef difftrain_check_config(config):\n    {raising}\n"
    (folder / "checking.py").write_text(text)
    ended = run_in(folder, *arguments, "--plugins", "./checking.py")
    assert ended.status == 2
    assert "checking.py" in ended.err
    assert "cannot check the config" in ended.err
