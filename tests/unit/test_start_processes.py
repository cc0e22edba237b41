"""All started processes must be there, and the first one goes first."""

import subprocess
import sys
from contextlib import suppress

import pytest

from difftrain.errors import DataError, MachineError
from difftrain.machine import processes


def test_a_process_that_accelerate_does_not_see_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(MachineError, match="2 processes were started but accelerate sees 1\nhint: start"):
        processes.start_accelerator()


def test_one_process_is_what_accelerate_sees_without_a_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.start_accelerator().num_processes == 1


@pytest.mark.parametrize("asked", [1, 2])
def test_several_processes_that_accelerate_launch_does_not_start_are_an_error(asked, tmp_path):
    # silent trap: `accelerate launch --cpu --num_processes 2` runs one process, which sees nothing of the other
    script = tmp_path / "start.py"
    script.write_text("from difftrain.machine.processes import start_accelerator\nstart_accelerator()\n")
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(asked))
    done = subprocess.run([sys.executable, *launcher, str(script)], capture_output=True, text=True)
    told = "accelerate launch was asked for several processes but started one, as it does with --cpu\nhint: start with"
    assert (told in done.stderr) == (asked == 2)
    assert bool(done.returncode) == (asked == 2)


def test_one_process_needs_no_torch_to_go_first():
    script = (
        "import sys\n"
        "from difftrain.machine.processes import first_process_first\n"
        "with first_process_first(): pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


class TwoProcesses:
    """Replace accelerate with a second process, which adds ``other`` to every exchange."""

    num_processes = 2
    device = "cpu"

    def __init__(self, *, is_main, other=0):
        self.is_main_process = is_main
        self.other = other
        self.told = []

    def reduce(self, tensor, reduction):
        assert reduction == "max"
        self.told.append(tensor.item())
        return tensor.clamp(min=self.other)


@pytest.fixture
def start(monkeypatch):
    def started(**facts):
        accelerator = TwoProcesses(**facts)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(processes, "start_accelerator", lambda: accelerator)
        return accelerator

    return started


def test_first_process_lets_the_others_go_on_after_its_body(start):
    accelerator = start(is_main=True)
    with processes.first_process_first():
        assert accelerator.told == []
    assert accelerator.told == [0]


@pytest.mark.parametrize("error", [DataError("no samples"), KeyboardInterrupt()])
def test_first_process_that_fails_tells_the_others(start, error):
    accelerator = start(is_main=True)
    with suppress(type(error)), processes.first_process_first():
        raise error
    assert accelerator.told == [1]


def test_another_process_waits_before_its_body(start):
    accelerator = start(is_main=False)
    with processes.first_process_first():
        assert accelerator.told == [0]


def test_another_process_stops_when_the_first_failed(start):
    start(is_main=False, other=1)
    with pytest.raises(MachineError, match="the first process stopped"), processes.first_process_first():
        pytest.fail("the body must not run")


def test_a_signal_in_one_process_is_known_in_all(start):
    assert processes.greatest(start(is_main=True, other=15), 0) == 15
    assert processes.greatest(start(is_main=True, other=0), 2) == 2
