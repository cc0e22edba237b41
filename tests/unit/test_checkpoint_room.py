"""Room for checkpoints is compared before the first step."""

from types import SimpleNamespace

import pytest
import torch

from difftrain.checkpoints import checkpoint_room
from difftrain.checkpoints.checkpoint_room import check_checkpoint_room, checkpoints_ahead
from difftrain.errors import MachineError


class Listening:
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def state(folder, *, step=0, total=10, interval=3, limit=None):
    config = SimpleNamespace(output_dir=folder, checkpoint_step_interval=interval, checkpoints_total_limit=limit)
    weights = [torch.zeros(1 << 20)]  # 4 MiB, so that a checkpoint has 20, and the files at the end 4
    plan = SimpleNamespace(config=config, adapter=SimpleNamespace(trains_base=False))
    return SimpleNamespace(plan=plan, trained=weights, step=step, total_steps=total)


@pytest.fixture
def free(monkeypatch):
    def set_free(mebibytes):
        usage = SimpleNamespace(free=mebibytes << 20)
        monkeypatch.setattr(checkpoint_room.shutil, "disk_usage", lambda folder: usage)

    return set_free


@pytest.mark.parametrize(
    ("step", "total", "interval", "count"),
    [(0, 10, 3, 4), (0, 9, 3, 3), (4, 10, 3, 3), (0, 10, 0, 1), (0, 10, 500, 1), (9, 10, 3, 1), (0, 1000, 1, 1000)],
)
def test_checkpoints_are_counted(tmp_path, step, total, interval, count):
    assert checkpoints_ahead(state(tmp_path, step=step, total=total, interval=interval)) == count


def test_too_little_for_one_checkpoint_is_an_error(tmp_path, free):
    free(23)
    with pytest.raises(MachineError, match="24 MiB needed, 23 MiB free"):
        check_checkpoint_room(state(tmp_path), Listening())


@pytest.mark.parametrize(
    ("limit", "mebibytes", "noted"), [(None, 83, True), (None, 84, False), (1, 44, False), (1, 43, True)]
)
def test_too_little_for_all_that_are_kept_is_a_note(tmp_path, free, limit, mebibytes, noted):
    free(mebibytes)
    listening = Listening()
    check_checkpoint_room(state(tmp_path, limit=limit), listening)
    assert [f"{mebibytes} MiB are free" in text for text in listening.said] == [True] * noted
