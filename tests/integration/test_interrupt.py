"""SIGINT and SIGTERM: the step is finished, a checkpoint saved, and a command that resumes the run is printed."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forked_runs import ForkedRun
from long_runs import ADAPTER, PATIENCE, changed, checkpoints, signalled, steps_of, wait_until

from conftest import EditPairs, read_metrics, run_in

STOPPING_PLUGIN = '''
import os

from difftrain import Observer, hookimpl


class Stopping(Observer):
    """Sends signals after one step, once."""

    name = "stopping"

    def step_end(self, result):
        if result.step == {step} and not os.path.exists("stopped"):
            open("stopped", "w").close()
            for number in {numbers}:
                os.kill(os.getpid(), number)


@hookimpl
def difftrain_observers():
    return (Stopping,)
'''
"""A plugin file that sends its own process real signals, once, at a known step."""
SLOW_PLUGIN = '''
import os
import time

from difftrain import Observer, hookimpl


class Slow(Observer):
    """Waits after each step, so that a signal comes before the last one."""

    name = "slow"

    def step_end(self, result):
        time.sleep(float(os.environ.get("SECONDS_AFTER_A_STEP", 0)))


@hookimpl
def difftrain_observers():
    return (Slow,)
'''


def printed_command(said):
    """Return the last line that starts a run, as a user would copy it."""
    return next(line.strip() for line in reversed(said.splitlines()) if "difftrain" in line and "--model" in line)


def typed(command):
    """Return the arguments of a printed command."""
    words = shlex.split(command)
    return words[words.index("--model") :]


def run_printed(command, folder, monkeypatch):
    """Run in a shell that finds this environment's programs, as in an activated environment."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Do an uninterrupted run of eight steps; return (folder, arguments)."""
    folder = tmp_path_factory.mktemp("whole")
    pairs = EditPairs(folder)
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=5), "--lora_dropout", 0.1)
    ended = run_in(folder, *arguments, "--max_train_steps", 8, "--output_dir", "whole")
    assert ended.status == 0, ended.err
    return folder, (*arguments, "--max_train_steps", 8)


def stopping(folder, arguments, output, *numbers, step=3):
    """Return arguments of a run that gets these signals in a step."""
    (folder / "stopped").unlink(missing_ok=True)
    (folder / "stopping.py").write_text(STOPPING_PLUGIN.format(step=step, numbers=[int(number) for number in numbers]))
    return changed(arguments, output_dir=output, plugins="./stopping.py")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_in_training_saves_and_the_printed_command_ends_with_equal_bytes(whole, number, status):
    folder, arguments = whole
    output = folder / f"stopped-{status}"
    stopped = run_in(folder, *stopping(folder, arguments, output, number))
    assert stopped.status == status
    assert f"stopped after step 3; saved {output / 'checkpoint-3'}" in stopped.err
    assert checkpoints(output) == ["checkpoint-3"]
    assert not (output / ADAPTER).exists()
    assert "--resume_from_checkpoint latest" in stopped.err

    resumed = run_in(folder, *typed(printed_command(stopped.err)))
    assert resumed.status == 0, resumed.err
    assert (output / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()
    assert steps_of(output) == list(range(1, 9))


def test_ctrl_c_in_a_process_and_its_printed_command_typed_in_a_shell(whole, tmp_path, monkeypatch):
    folder, arguments = whole
    output = folder / "real"
    (folder / "slow.py").write_text(SLOW_PLUGIN)
    arguments = changed(arguments, output_dir=output, plugins="./slow.py")
    process = ForkedRun(folder, arguments, SECONDS_AFTER_A_STEP=1)
    wait_until(process, lambda: (output / "metrics.jsonl").exists() and len(steps_of(output)) >= 2)
    said = signalled(process, signal.SIGINT)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    (saved,) = checkpoints(output)
    assert saved == f"checkpoint-{steps_of(output)[-1]}"

    resumed = run_printed(printed_command(said), folder, monkeypatch)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{saved} at step" in resumed.stderr
    assert (output / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()


def test_one_request_that_reaches_the_process_twice_is_one(whole):
    # `timeout` and terminals signal the process and its group; only a later second signal means "at once"
    folder, arguments = whole
    output = folder / "twice"
    stopped = run_in(folder, *stopping(folder, arguments, output, signal.SIGTERM, signal.SIGTERM))
    assert stopped.status == 143
    assert checkpoints(output) == ["checkpoint-3"]


def test_second_signal_stops_at_once_and_the_command_begins_where_something_is_saved(whole, monkeypatch):
    from difftrain.machine import interrupts

    monkeypatch.setattr(interrupts, "ONE_REQUEST_SECONDS", 0.0)
    folder, arguments = whole
    output = folder / "at-once"
    arguments = changed(arguments, checkpoint_step_interval=2)
    stopped = run_in(folder, *stopping(folder, arguments, output, signal.SIGINT, signal.SIGINT))
    assert stopped.status == 130
    assert checkpoints(output) == ["checkpoint-2"]
    assert "--resume_from_checkpoint latest" in printed_command(stopped.err)


def test_signal_in_the_last_step_finishes(whole):
    folder, arguments = whole
    output = folder / "last"
    ended = run_in(folder, *stopping(folder, arguments, output, signal.SIGINT, step=8))
    assert ended.status == 0, ended.err
    assert (output / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()


def test_signal_while_torch_is_imported_ends_without_a_traceback(whole):
    folder, arguments = whole
    process = subprocess.Popen(
        [sys.executable, "-m", "difftrain", *map(str, changed(arguments, output_dir="early"))],
        cwd=folder, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("check caches"):  # remembered samples are not paired again
            break
    said = signalled(process, signal.SIGTERM)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert typed(printed_command(said)) == [str(part) for part in changed(arguments, output_dir="early")]


def send_at_call(monkeypatch, owner, name, number, call):
    """Send this process a signal before that call of a function."""
    original = getattr(owner, name)
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_while_encoding_keeps_the_cache_entries_so_far(command, edit_pairs, monkeypatch, number, status):
    from difftrain.data.caching.tensor_cache import TensorCache

    arguments = (*edit_pairs.kontext, "--data_backend_config", edit_pairs(count=4), "--max_train_steps", 1)
    with monkeypatch.context() as patch:
        # five captions (including the empty one), then two images, then the signal
        send_at_call(patch, TensorCache, "write", number, call=8)
        stopped = command(*arguments)
    assert stopped.status == status
    assert "Traceback" not in stopped.err
    assert typed(printed_command(stopped.err)) == [str(part) for part in arguments]
    entries = list((edit_pairs.folder / "cache").rglob("*.safetensors"))
    assert len(entries) == 7
    again = command(*typed(printed_command(stopped.err)))
    assert again.status == 0, again.err
    assert "encode captions" not in again.err
    assert "encode images 6" in again.err


def test_signal_before_the_first_step_does_not_turn_starting_over_into_resuming(whole, monkeypatch):
    folder, arguments = whole
    arguments = changed(arguments, output_dir="whole", resume_from_checkpoint="none", max_train_steps=9)
    with monkeypatch.context() as patch:
        from difftrain.startup import prepare_run

        send_at_call(patch, prepare_run, "prepare_samples", signal.SIGINT, call=1)
        stopped = run_in(folder, *arguments)
    assert stopped.status == 130
    assert "--resume_from_checkpoint none" in printed_command(stopped.err)
    assert (folder / "whole" / "checkpoint-8").is_dir()


def test_signal_in_validation_draws_no_more_and_loses_no_step(whole, monkeypatch):
    from difftrain import PipelineSampler

    folder, arguments = whole
    output = folder / "validating"
    arguments = changed(
        arguments, output_dir=output, validation_steps=3, num_eval_images=3, validation_num_inference_steps=1,
        validation_resolution=64,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        calls = send_at_call(patch, PipelineSampler, "__call__", signal.SIGTERM, call=2)
        stopped = run_in(folder, *arguments)
    assert stopped.status == 143
    assert len(calls) == 2
    assert len(list((output / "validation" / "step-000003").iterdir())) == 1
    (measured,) = [line for line in read_metrics(output) if "fixed_loss" in line]
    assert measured["step"] == 3
    assert "psnr" not in measured
    assert checkpoints(output) == ["checkpoint-3"]
    resumed = run_in(folder, *typed(printed_command(stopped.err)))
    assert resumed.status == 0, resumed.err
    assert (output / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()


def test_ctrl_c_while_images_are_made_in_processes_ends_without_tracebacks(edit_pairs, tmp_path):
    datasets = edit_pairs(
        count=60, references=None, edit_sizes=[(512, 512)],
        conditioning=[{"type": "jpeg_artifacts", "compression_rounds": 9}],
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "difftrain", *map(str, edit_pairs.kontext), "--data_backend_config", str(datasets),
         "--max_train_steps", "1"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    made = tmp_path / "cache"
    # not rglob, which stumbles over folders that come and go
    wait_until(process, lambda: sum(name.endswith(".png") for _, _, names in os.walk(made) for name in names) > 3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert printed_command(said)


def test_signal_that_is_noticed_while_another_error_passes_ends_the_run_cleanly(whole, monkeypatch):
    # a process that waits in C for one that has stopped sees the broken connection first, then its own signal
    from difftrain.startup import prepare_run
    from difftrain.training import run_training

    class Late(run_training.Interrupts):
        def __exit__(self, kind, error, trace):
            super().__exit__(kind, error, trace)
            if kind is RuntimeError:
                self._note(signal.SIGTERM, None)

    def broken(plan, *, reporter, before_making):
        raise RuntimeError("connection closed by peer")

    folder, arguments = whole
    monkeypatch.setattr(run_training, "Interrupts", Late)
    monkeypatch.setattr(prepare_run, "prepare_samples", broken)
    stopped = run_in(folder, *arguments)
    assert stopped.status == 143
    assert "stopped by SIGTERM" in stopped.err
    assert typed(printed_command(stopped.err)) == [str(part) for part in arguments]


def test_a_signal_that_a_library_swallowed_ends_the_run_at_the_next_phase(whole, monkeypatch):
    # as in a destructor, where Python prints an exception and continues
    from difftrain.startup import prepare_run

    folder, arguments = whole
    original = prepare_run.find_model

    def swallowing(plan):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(plan)

    monkeypatch.setattr(prepare_run, "find_model", swallowing)
    stopped = run_in(folder, *changed(arguments, output_dir="swallowed"))
    assert stopped.status == 143
    assert "scan edits" not in stopped.err
