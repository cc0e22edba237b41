"""Signals to `difftrain export` and `difftrain edit`: nothing is half written, and the last line starts them again."""

import os
import shlex
import signal

import pytest
from forked_runs import ForkedRun

from conftest import EditPairs, run_in
from difftrain.editing import draw_edits
from difftrain.exporting import merge as merging
from difftrain.exporting import write_export

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
EXPORTS = {
    "file": (write_export, "worst_difference", ("--output", "a.safetensors")),
    "merged": (merging, "check_merged", ("--merge", "--output", "model")),
}
"""What is called when everything is written under a temporary name, and not yet checked."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train one step; return the folder in which the run is."""
    pairs = EditPairs(tmp_path_factory.mktemp("stopped"))
    ended = run_in(pairs.folder, *pairs.kontext, "--data_backend_config", pairs(), "--max_train_steps", 1)
    assert ended.status == 0, ended.err
    return pairs.folder


@pytest.fixture
def killing(monkeypatch):
    """Return a function that lets a function of a module send its own process a signal, once."""

    def start(module, name, number, *, calls=1):
        function, left = getattr(module, name), [calls]

        def called(*given):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return function(*given)

        monkeypatch.setattr(module, name, called)

    return start


def typed(command, name):
    """Return the words of a printed command from its name on; before it is how the program is started."""
    words = shlex.split(command)
    return words[words.index(name) :]


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("case", EXPORTS)
def test_a_stopped_export_leaves_nothing_and_is_started_again_by_its_last_line(run, case, number, killing, tmp_path):
    module, name, flags = EXPORTS[case]
    before = sorted(run.iterdir())
    flags = (*flags[:-1], str(tmp_path / flags[-1]))
    killing(module, name, number)
    ended = run_in(run, "export", "output", *flags)
    assert ended.status == STATUS[number], ended.err
    assert list(tmp_path.iterdir()) == []
    assert sorted(run.iterdir()) == before
    stopped, hint, command = ended.err.splitlines()[-3:]
    assert stopped == f"stopped by {number.name}; there is no {flags[-1]}, and no part of it"
    assert hint == "start again with:"
    again = run_in(run, *typed(command, "export"))
    assert again.status == 0, again.err
    assert [path.name for path in tmp_path.iterdir()] == [EXPORTS[case][2][-1]]


@pytest.mark.parametrize("number", STATUS)
def test_a_stopped_edit_keeps_complete_results_and_a_sheet_of_them(run, number, killing, tmp_path):
    words = ("edit", "--adapter", "output", "--image", "references/0000.png", "--prompt", "a b", "--seeds", 3)
    words = (*words, "--output", tmp_path / "drawn")
    killing(draw_edits, "save_png", number, calls=2)
    ended = run_in(run, *words)
    assert ended.status == STATUS[number], ended.err
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        "0000-strength-1.png", "metrics.json", "sheet.png",
    ]  # fmt: skip
    assert "1 of 3 results are drawn; the sheet shows these" in ended.err
    stopped, _, command = ended.err.splitlines()[-3:]
    assert stopped == f"stopped by {number.name}; complete results are kept in {tmp_path / 'drawn'}"
    assert typed(command, "edit") == [str(word) for word in words]


def test_an_edit_stopped_before_its_first_result_says_so(run, killing, tmp_path):
    killing(draw_edits, "start_accelerator", signal.SIGTERM)
    ended = run_in(
        run,
        "edit",
        "--adapter",
        "output",
        "--image",
        "references/0000.png",
        "--prompt",
        "a",
        "--output",
        tmp_path / "d",
    )
    assert ended.status == 143
    assert "stopped by SIGTERM; nothing was drawn" in ended.err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("flags", [("--output", "k.safetensors"), ("--merge", "--output", "k")])
def test_an_export_killed_at_any_moment_leaves_no_file_under_its_name(run, flags, tmp_path):
    output = tmp_path / flags[-1]
    process = ForkedRun(run, ("export", run / "output", *flags[:-1], output))
    hidden = []
    while process.poll() is None and not hidden:
        hidden = list(tmp_path.glob(".k*"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert hidden
    assert not output.exists()
    again = run_in(run, "export", "output", *flags[:-1], output)
    assert again.status == 0, again.err
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
