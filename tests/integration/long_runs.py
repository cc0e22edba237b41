"""Helpers of the tests that stop runs and resume them."""

import signal
import time

from conftest import read_metrics

ADAPTER = "pytorch_lora_weights.safetensors"
PATIENCE = 180
"""Seconds a process may take on a busy machine."""


def changed(arguments, **options):
    """Return the arguments of a run, each option given once."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    given.update({f"--{key}": value for key, value in options.items()})
    return tuple(part for pair in given.items() for part in pair)


def wait_until(process, reached):
    """Poll until ``reached()``; if the process ends before, fail and show its output."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def signalled(process, number):
    """Send a signal to a running process, wait for its end and return its output."""
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    return said


def killed(process):
    """Send SIGKILL; return whether it came before the end."""
    signalled(process, signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def checkpoints(output):
    return sorted(path.name for path in output.glob("checkpoint-*"))


def steps_of(output):
    """Return the steps in the metrics, as often as they occur."""
    return [line["step"] for line in read_metrics(output) if "loss" in line]


def losses(output):
    return {line["step"]: line["loss"] for line in read_metrics(output) if "loss" in line}
