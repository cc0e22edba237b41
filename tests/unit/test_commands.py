"""The printed command lines can be typed where the run was started."""

import shlex
import shutil
import sys

import pytest

from difftrain.cli.rerun_commands import resume_command, same_command

LAUNCHED = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"}


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")


@pytest.mark.parametrize(
    "typed",
    [
        ["--resume_from_checkpoint", "none"],
        ["--resume-from-checkpoint", "checkpoint-4"],
        ["--resume_from_checkpoint=checkpoint-4"],
        [],
    ],
)
def test_resume_command_continues_from_the_newest_checkpoint_whatever_was_resumed(typed):
    assert resume_command(["--config", "a.json", *typed, "--lora_rank", "8"]) == (
        "difftrain --config a.json --lora_rank 8 --resume_from_checkpoint latest"
    )


def test_same_command_repeats_what_was_typed():
    typed = ["--demo", "--resume_from_checkpoint", "none", "--validation_prompt", "it's red"]
    assert shlex.split(same_command(typed)) == ["difftrain", *typed]


def test_a_program_that_is_not_on_the_path_is_named_by_its_python(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert shlex.split(same_command(["--demo"])) == [sys.executable, "-m", "difftrain", "--demo"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert shlex.split(same_command([]))[:3] == [sys.executable, "-m", "torch.distributed.run"]


def test_several_processes_are_started_by_torchrun_again(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert same_command(["--demo"]) == "torchrun --nproc_per_node 4 -m difftrain --demo"


def test_several_machines_are_named_again(monkeypatch):
    machines = {
        "WORLD_SIZE": "8",
        "GROUP_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "one",
        "MASTER_PORT": "29400",
    }
    for name, value in {**LAUNCHED, **machines}.items():
        monkeypatch.setenv(name, value)
    assert same_command([]) == (
        "torchrun --nnodes 2 --node_rank 1 --master_addr one --master_port 29400 --nproc_per_node 4 -m difftrain"
    )
