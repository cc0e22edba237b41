"""Observers that fail do not end a run."""

import pytest
from data_plans import SilentReporter

from difftrain import MachineError, Observer, RunStart, StepResult
from difftrain.output.observers import Observers
from difftrain.plugins.discovery import load_plugins

START = RunStart(config=None, output_dir=None, total_steps=3, first_step=0)
STEP = StepResult(step=1, loss=0.5, learning_rate=1e-4, grad_norm=1.0, seconds=1.0, samples=1, epoch=0)


class Failing(Observer):
    """Fails in one way as the run starts and in another at each step."""

    name = "failing"

    def run_start(self, run):
        raise MachineError("no room\nhint: make some")

    def step_end(self, result):
        raise SystemExit(3) if result.step == 3 else KeyError(result.step)


class Counting(Observer):
    """Counts steps."""

    name = "counting"
    seen: list = []

    def step_end(self, result):
        self.seen.append(result.step)


@pytest.fixture
def watched():
    """Return an observer that fails and one that counts, as (observers, counting, output)."""
    said = []
    reporter = SilentReporter()
    reporter.say = said.append
    counting = Counting(seen=[])
    registry = load_plugins().registry
    registry.add("observer", Failing, "difftrain-failing 1.0")
    return Observers([Failing(), counting], registry, reporter, is_main=True), counting, said


def test_each_kind_of_error_is_reported_once_with_who_failed_and_where(watched):
    observers, _, said = watched
    observers.run_start(START)
    for _ in range(4):
        observers.step_end(STEP)
    who = "warning: observer 'failing' of difftrain-failing 1.0 failed in"
    assert said == [
        f"{who} run_start, and the run continues without it: no room\nhint: make some",
        f"{who} step_end, and the run continues without it: KeyError: 1",
    ]


def test_an_observer_that_fails_keeps_nothing_from_the_others(watched):
    observers, counting, _ = watched
    observers.step_end(STEP)
    assert counting.seen == [1]


def test_other_processes_observe_nothing():
    counting = Counting(seen=[])
    observers = Observers([counting], load_plugins().registry, SilentReporter(), is_main=False)
    observers.step_end(STEP)
    assert counting.seen == []


def test_what_ends_the_process_is_not_caught(watched):
    observers, _, _ = watched
    with pytest.raises(KeyboardInterrupt), observers.reporting_failures_of("anyone"):
        raise KeyboardInterrupt
