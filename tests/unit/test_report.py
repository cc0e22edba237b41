"""Messages that the user sees while a run works."""

import io
import time

import pytest
from rich.console import Console

from difftrain import RunStart
from difftrain.output import console
from difftrain.types import StepResult


@pytest.fixture
def reporter():
    return console.ConsoleReporter(Console(file=io.StringIO(), width=200, highlight=False))


def shown(reporter):
    return reporter.console.file.getvalue()


def step(number, loss=1.0):
    return StepResult(step=number, loss=loss, learning_rate=1e-4, grad_norm=1.0, seconds=2.0, samples=1, epoch=0)


def training_bar(reporter):
    bar = console.TrainingBar(reporter)
    bar.run_start(RunStart(config=None, output_dir=None, total_steps=10, first_step=0))
    return bar


def test_phase_says_its_name_count_and_time(reporter):
    with reporter.phase("scan edits", 3) as phase:
        phase.advance(3)
    assert shown(reporter) == "scan edits 3: 0:00\n"


def test_phase_that_was_stopped_says_how_far_it_came(reporter):
    def broken():
        with reporter.phase("encode images", 5) as phase:
            phase.advance(2)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert "encode images 2/5: 0:00 (stopped)" in shown(reporter)


def test_phase_in_which_nothing_moves_says_after_what_it_waits(reporter, monkeypatch):
    monkeypatch.setattr(console, "STALL_SECONDS", 0.1)
    with reporter.phase("encode images", 5) as phase:
        phase.advance(1, item="data/cat.png")
        deadline = time.monotonic() + 5
        while "still waiting" not in shown(reporter) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "encode images: nothing finished for 0:00 after data/cat.png; still waiting" in shown(reporter)


def test_phase_names_each_part_that_takes_long_with_the_time_left(reporter, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with reporter.phase("compile", 3) as phase:
        phase.begin("compile 2 of 3: 64x64")
        phase.advance()
        phase.begin("compile 3 of 3: 96x48")
        phase.advance()
        phase.begin("one more")
    lines = shown(reporter).splitlines()
    assert lines[0] == "compile 2 of 3: 64x64"
    assert [line for line in lines if line.startswith("compile 3 of 3: 96x48, ") and line.endswith(" left")]


def test_phase_that_waits_names_the_part_it_is_in(reporter, monkeypatch):
    monkeypatch.setattr(console, "STALL_SECONDS", 0.1)
    with reporter.phase("compile", 5) as phase:
        phase.begin("64x64")
        deadline = time.monotonic() + 5
        while "still waiting" not in shown(reporter) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "compile: nothing finished for 0:00 in 64x64; still waiting" in shown(reporter)


def test_training_line_has_loss_rate_and_time_left(reporter):
    bar = training_bar(reporter)
    bar.step_end(step(1, loss=0.5))
    line = shown(reporter)
    for part in ("step 1/10", "loss 0.5000", "2.00 s/step", "eta 0:18"):
        assert part in line


def test_slow_first_step_does_not_spoil_the_time_left(reporter, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    bar = training_bar(reporter)
    first = StepResult(step=1, loss=1, learning_rate=1e-4, grad_norm=1, seconds=60.0, samples=1, epoch=0)
    bar.step_end(first)
    bar.step_end(step(2))
    assert "2.00 s/step  eta 0:16" in shown(reporter).splitlines()[-1]


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (750, "12:30"), (10925, "3:02:05")])
def test_durations_read_like_a_clock(seconds, text):
    assert console.duration(seconds) == text


def test_other_processes_say_nothing(capsys):
    silent = console.make_reporter(quiet=True)
    with silent.phase("scan", 2) as phase:
        phase.advance(2)
    silent.say("hello")
    assert capsys.readouterr() == ("", "")
