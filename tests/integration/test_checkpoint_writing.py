"""A checkpoint is complete or absent, whichever disk operation a kill precedes."""

import os
import shutil
from pathlib import Path

import pytest
from long_runs import checkpoints

from difftrain.checkpoints import checkpoint_files as module
from difftrain.checkpoints import resume_state, saver
from difftrain.checkpoints.gather import gather_state


class Killed(BaseException):
    """Stands for SIGKILL: nothing may clean up after it, and nothing in the writing does."""


DISK = [
    (Path, "mkdir"), (Path, "write_text"), (Path, "write_bytes"), (Path, "rename"), (os, "fsync"), (shutil, "rmtree"),
]  # fmt: skip


@pytest.fixture
def state(command, edit_pairs, monkeypatch):
    """Return what a run of one step saves."""
    caught = []

    def catch(run, gathered, output_dir):
        caught.append(run)
        return module.write_checkpoint(run, gathered, output_dir)

    monkeypatch.setattr(saver, "write_checkpoint", catch)
    ended = command(*edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 1)
    assert ended.status == 0, ended.err
    return caught[0]


def save(state, output):
    module.write_checkpoint(state, gather_state(state), output)
    module.rotate(output, keep=1)


def killed_before(number, monkeypatch, action):
    """Run ``action`` up to the disk operation of that number; return whether it got that far."""
    done = 0

    def counted(operation):
        def run(*arguments, **options):
            nonlocal done
            done += 1
            if done == number:
                raise Killed
            return operation(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        for owner, name in DISK:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        patch.setattr(module, "write_optimizer", counted(module.write_optimizer))
        try:
            action()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("already_there", [False, True])
def test_every_checkpoint_there_loads_whenever_the_kill_came(state, tmp_path, monkeypatch, already_there):
    output = tmp_path / "killed"
    moments = 0
    while True:
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        state.step = 1
        save(state, output)
        state.step = 1 if already_there else 2
        if not killed_before(moments + 1, monkeypatch, lambda: save(state, output)):
            break
        moments += 1
        for name in checkpoints(output):
            module.load_checkpoint(state, output / name, resume_state.read_state(output / name))
        if not already_there:
            assert checkpoints(output), "the one before was taken away too early"
    assert moments > 10
    assert len(checkpoints(output)) == 1
