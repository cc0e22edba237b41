"""A second Python looks at the smaller datasets of a run; what it cannot tell is looked at here."""

import os
import subprocess
import sys

import pytest
from data_plans import SilentReporter, caption, data_plan, new_image, reference_set, target_set

from difftrain.data.files.folder_digest import DataFolder, digest_of_folder
from difftrain.data.samples import looking_aside
from difftrain.data.samples.looking_aside import looked_at_aside, to_look_at_aside
from difftrain.data.samples.prepare_samples import prepare_samples


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    (data / "below").mkdir(parents=True)
    (data / "a.txt").write_text("one")
    (data / "below" / "caf\u00e9.txt").write_text("two")
    (data / os.fsdecode(b"not \xff utf-8")).write_text("three")
    (data / "link").symlink_to(data / "below")
    (data / "broken").symlink_to(tmp_path / "nowhere")
    return DataFolder(str(data), [("cache_dir", "a folder")], [(1, 2)])


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(looking_aside, "FEWEST_FILES", 1)
    monkeypatch.setattr(looking_aside, "_START", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for number in range(3):
        caption(new_image(tmp_path / "edits" / f"{number}.png", seed=number), f"edit {number}")
        new_image(tmp_path / "references" / f"{number}.png", seed=100 + number)
    return data_plan(tmp_path, target_set(tmp_path, references=["references"]), reference_set(tmp_path))


def test_a_second_python_finds_what_this_one_does(folder, monkeypatch):
    here = digest_of_folder(folder)
    monkeypatch.setattr(looking_aside, "digest_of_folder", None)
    with looked_at_aside({"edits": folder, "again": folder}) as looks:
        assert [look() for look in looks.values()] == [here, here]
    assert here[1] == 4


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false", "/bin/cat", ""])
def test_what_a_second_python_does_not_tell_is_looked_at_here(folder, monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    with looked_at_aside({"edits": folder}) as looks:
        assert looks["edits"]() == digest_of_folder(folder)


def test_a_folder_that_vanishes_is_an_error_here_too(folder):
    gone = folder._replace(root=folder.root + " gone")
    with looked_at_aside({"gone": gone, "edits": folder}) as looks:
        assert looks["edits"]() == digest_of_folder(folder)
        with pytest.raises(FileNotFoundError):
            looks["gone"]()


def test_the_second_python_ends_with_the_look(folder, monkeypatch):
    started = []

    class Watched(subprocess.Popen):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    with pytest.raises(KeyboardInterrupt), looked_at_aside({"edits": folder}):
        raise KeyboardInterrupt
    assert [process.returncode is not None for process in started] == [True]


def test_the_smaller_half_is_looked_at_aside(pairs, monkeypatch):
    edits, references = pairs.datasets
    assert to_look_at_aside([edits, references], {"edits": 10, "references": 15}) == [references]
    assert to_look_at_aside([edits, references], {"edits": 10, "references": 25}) == [edits]
    monkeypatch.setattr(looking_aside, "FEWEST_FILES", 36)
    assert to_look_at_aside([edits, references], {"edits": 10, "references": 15}) == []
    monkeypatch.setattr(looking_aside, "FEWEST_FILES", 35)
    monkeypatch.setattr(looking_aside, "_START", 20)
    assert to_look_at_aside([edits, references], {"edits": 10, "references": 15}) == []


def test_a_restart_looks_at_one_set_aside_and_notices_changes_in_both(pairs, tmp_path, monkeypatch):
    first = prepare_samples(pairs, reporter=SilentReporter())
    asked = []

    def recorded(folders):
        asked.append(list(folders))
        return looked_at_aside(folders)

    monkeypatch.setattr("difftrain.data.samples.remembered.looked_at_aside", recorded)
    again = prepare_samples(pairs, reporter=SilentReporter())
    assert (asked, again.hashed) == ([["references"]], 0)
    assert list(again.samples) == list(first.samples)
    for changed in ("references/1.png", "edits/1.png"):
        new_image(tmp_path / changed, seed=7)
        os.utime(tmp_path / changed, ns=(1, len(asked)))
        assert prepare_samples(pairs, reporter=SilentReporter()).hashed == 1
    assert len(asked) == 3
