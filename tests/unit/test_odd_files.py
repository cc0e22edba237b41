"""Files and folders that a tidy folder never has: used, or reported by name; never a traceback, never a wait."""

import os
import socket
import sys

import pytest
from data_plans import SilentReporter, caption, data_plan, new_image, target_set, two_folders

from conftest import run_in
from difftrain import DataError
from difftrain.data.files import walk
from difftrain.data.files.captions import FilenameCaptions, TextfileCaptions
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.pixels import open_upright
from difftrain.data.samples.prepare_samples import prepare_samples

NOT_UTF8 = os.fsdecode(b"caf\xe9")


def prepare(plan):
    return prepare_samples(plan, reporter=SilentReporter())


def samples_of(root, **options):
    return prepare(data_plan(root, target_set(root, **options))).samples


def problem_of(root, **options):
    with pytest.raises(DataError) as raised:
        prepare(data_plan(root, target_set(root, **options)))
    return str(raised.value)


def edit(root, name="a.png"):
    caption(new_image(root / "edits" / name), "red")
    return root / "edits" / name


@pytest.mark.parametrize("reason", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, reason):
    edit(tmp_path)
    edit(tmp_path, "locked/b.png")
    real = os.scandir

    def scandir(folder):
        if str(folder).rstrip("/").endswith("locked"):
            raise reason
        return real(folder)

    monkeypatch.setattr(walk.os, "scandir", scandir)
    assert problem_of(tmp_path).startswith(
        f"dataset 'edits': 1 item of folder {tmp_path}/edits cannot be used: locked ({reason.strerror.lower()})\n"
        f"hint: fix what is named, or take it out of folder {tmp_path}/edits"
    )


@pytest.mark.parametrize("name", ["x" * 300, "loop", "file"])
def test_root_that_cannot_be_entered_is_named(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    message = problem_of(tmp_path, folder=name)
    assert "instance_data_dir" in message


@pytest.mark.parametrize("seconds", [-(10**10), -1, 0, 10**10, 9_300_000_000, 2**40])
def test_file_times_far_away_are_remembered(tmp_path, seconds):
    path = edit(tmp_path)
    try:
        os.utime(path, (seconds, seconds))
    except (OSError, OverflowError):
        pytest.skip("not possible on this file system")
    plan = data_plan(tmp_path, target_set(tmp_path))
    assert prepare(plan).hashed == 1
    assert prepare(plan).hashed == 0
    os.utime(path.with_suffix(".txt"), (seconds, seconds))
    assert len(prepare(plan).samples) == 1


def test_names_that_are_not_utf8_are_used_and_remembered(tmp_path):
    edit(tmp_path, f"{NOT_UTF8}/{NOT_UTF8}.png")
    plan = data_plan(tmp_path, target_set(tmp_path, max_num_samples=1))
    [sample] = prepare(plan).samples
    assert sample.target.record.key == r"caf\xe9/caf\xe9"
    assert sample.captions == ("red",)
    assert (prepare(plan).hashed, prepare(plan).captions_read) == (0, 0)


def test_a_limit_draws_among_names_that_are_not_utf8(tmp_path):
    edit(tmp_path)
    edit(tmp_path, f"{NOT_UTF8}.png")
    assert len(samples_of(tmp_path, max_num_samples=1)) == 1


def test_a_name_that_is_not_utf8_gives_no_caption(tmp_path):
    with pytest.raises(DataError, match=r"caf\\xe9.png: its name is not UTF-8"):
        FilenameCaptions().captions(LocalImage.at(tmp_path / f"{NOT_UTF8}.png"))


def test_names_are_printed_on_one_line_whatever_they_hold(tmp_path):
    for name in (f"{NOT_UTF8}.png", "two\nlines\x1b[31m.png", "turned\u202egnp.png"):
        (tmp_path / "edits").mkdir(exist_ok=True)
        (tmp_path / "edits" / name).write_bytes(b"no image")
    message = problem_of(tmp_path)
    for shown in (r"caf\xe9.png", r"two\nlines\x1b[31m.png", r"turned\u202egnp.png"):
        assert shown in message
    message.encode("utf-8")


@pytest.mark.parametrize("kind", ["pipe", "socket", "broken link", "loop"])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, monkeypatch, kind):
    edit(tmp_path)
    odd = tmp_path / "edits" / "x.png"
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("edits/x.png")
    else:
        odd.symlink_to(odd if kind == "loop" else tmp_path / "gone.png")
    assert problem_of(tmp_path).startswith(
        f"dataset 'edits': 1 item of folder {tmp_path}/edits cannot be used: x.png ("
    )
    with pytest.raises(DataError, match=r"x\.png"):
        open_upright(LocalImage.at(odd))


def test_link_to_a_folder_that_is_gone_is_reported(tmp_path):
    edit(tmp_path)
    (tmp_path / "edits" / "more").symlink_to(tmp_path / "not mounted")
    assert "more (a broken link)" in problem_of(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_caption_that_is_no_file_is_named_and_never_waited_for(tmp_path, kind):
    new_image(tmp_path / "edits" / "a.png")
    odd = tmp_path / "edits" / "a.txt"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to(odd)
    assert "1 captions cannot be read" in problem_of(tmp_path)
    assert "a.txt" in problem_of(tmp_path)


def test_folder_named_like_an_image_is_a_folder(tmp_path):
    edit(tmp_path, "b.png/c.png")
    [sample] = samples_of(tmp_path)
    assert sample.target.record.key == "b.png/c"


def test_empty_image_is_named(tmp_path):
    edit(tmp_path).write_bytes(b"")
    assert "a.png (an empty file)" in problem_of(tmp_path)


def test_longest_names_are_used(tmp_path):
    edit(tmp_path, "n" * 251 + ".png")
    assert len(samples_of(tmp_path)) == 1


def test_caption_whose_name_would_be_too_long_is_a_missing_caption(tmp_path):
    name = "n" * 252 + ".ppm"
    with pytest.raises(OSError, match="too long"):
        (tmp_path / name).touch()
    assert TextfileCaptions().captions(LocalImage.at(tmp_path / name)) is None


def test_twins_by_case_and_by_accent_are_distinguished_or_reported(tmp_path):
    for name in ("A.png", "a.png", "\u00e9.png", "e\u0301.png"):
        edit(tmp_path, name)
    assert len(samples_of(tmp_path)) == 4


def test_accent_twins_in_a_pair_are_ambiguous(tmp_path):
    plan = two_folders(tmp_path, names=("\u00e9", "e\u0301"))
    with pytest.raises(DataError, match="ambiguous"):
        prepare(plan)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_check_prints_names_that_are_not_utf8(tmp_path, edit_pairs, json_flag):
    edit_pairs(count=2)
    for folder in ("edits", "references"):
        new_image(tmp_path / folder / f"{NOT_UTF8}.png", (64, 64), seed=5)
    new_image(tmp_path / "references" / f"{NOT_UTF8}2.png", (64, 64), seed=6)
    (tmp_path / "edits" / f"{NOT_UTF8}.txt").write_text("")
    flags = (*edit_pairs.kontext, "--data_backend_config", "datasets.json", "--max_train_steps", 1)
    ended = run_in(tmp_path, "check", *flags, *json_flag)
    assert ended.status == 0, ended.err
    assert "caf\\" in ended.out
    ended.out.encode("utf-8")
