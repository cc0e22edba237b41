"""`difftrain check` and its pair doctor: text, JSON, page and exit statuses."""

import json

import pytest

from conftest import run_in
from difftrain.doctor import alignment, page_rows
from difftrain.doctor.kinds import KINDS
from pictures_of_pairs import faulty_pairs, write_config

FINDING = {"kind": str, "title": str, "level": str, "dataset": str, "count": int, "text": str, "names": list}
SUMMARY = {
    "status", "problems", "notes", "model", "samples", "held_out_samples", "datasets", "buckets", "reference_buckets",
    "files", "to_encode", "to_encode_on_demand", "disk", "batches_per_epoch", "batches_full", "steps_per_epoch",
    "total_steps",
}  # fmt: skip
DOCTOR = {"findings", "not_checked", "pairs", "page"}


@pytest.fixture
def flags(tmp_path):
    faulty_pairs(tmp_path)
    return write_config(tmp_path)


def test_json_has_the_documented_keys_and_types(tmp_path, flags):
    ended = run_in(tmp_path, "check", "--json", *flags)
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert found.keys() == SUMMARY | DOCTOR
    for finding in found["findings"]:
        assert finding.keys() - {"measures"} == FINDING.keys() | {"fix"}
        assert all(isinstance(finding[key], kind) for key, kind in FINDING.items())
        assert finding["kind"] in KINDS
        assert finding["level"] in ("problem", "note", "hint")
        assert finding["count"] == len(finding["names"]) or not finding["names"]
    assert found["pairs"] == {"total": 10, "without_reference": 0, "comparable": 10, "compared": 10}
    assert found["page"] is None
    kinds = {finding["kind"] for finding in found["findings"]}
    expected = {"no_edit", "near_equal", "tiny_reference", "caption_describes", "caption_too_long"}
    assert kinds >= expected | ({"shifted", "zoomed"} if alignment.can_estimate() else set())


def test_text_ends_with_the_findings_their_fixes_and_ready(tmp_path, flags):
    ended = run_in(tmp_path, "check", *flags)
    lines = ended.out.splitlines()
    at = next(place for place, line in enumerate(lines) if "equal pixels" in line)
    assert lines[at] == "note: dataset 'edits': 1 pairs have equal pixels, so nothing is edited: no_edit.png"
    assert lines[at + 1].startswith("hint: replace the target")
    assert any(line.startswith("maybe: dataset 'edits': 1 captions seem to describe") for line in lines)
    assert lines[-1] == "ready to train"


def test_fast_compares_nothing_and_says_so(tmp_path, flags):
    ended = run_in(tmp_path, "check", "--fast", *flags)
    assert "compare pixels" not in ended.err
    assert "not checked: what only pixels tell" in ended.out
    assert "--pixels does it" in ended.out


def test_the_page_is_written_and_named(tmp_path, flags):
    ended = run_in(tmp_path, "check", "--html", "pages/doctor", *flags)
    assert ended.status == 0, ended.err
    assert "page: pages/doctor/index.html" in ended.out
    assert len(list((tmp_path / "pages" / "doctor" / "thumbnails").rglob("*.jpg"))) == 19
    ended = run_in(tmp_path, "check", "--html", "pages/doctor", *flags)
    assert "compare pixels" not in ended.err


def test_data_with_problems_stays_an_error_but_has_a_page_and_findings(tmp_path, flags):
    (tmp_path / "references" / "good.png").unlink()
    plain = run_in(tmp_path, "check", *flags)
    paged = run_in(tmp_path, "check", "--html", "pages", *flags)
    assert (plain.status, paged.status) == (2, 2)
    assert "1 of 10 images have no reference in 'references': good.png" in paged.err
    assert paged.err.endswith(plain.err[plain.err.index("error:") :])
    assert "unmatched" in (tmp_path / "pages" / "index.html").read_text()
    told = run_in(tmp_path, "check", "--json", *flags)
    assert told.status == 2
    found = json.loads(told.out)
    assert found["status"] == "error"
    assert found["findings"][0]["kind"] == "unmatched"
    assert found["findings"][0]["names"] == ["good.png"]
    assert found["pairs"]["total"] == 9


def test_a_page_among_the_data_is_refused_before_anything_is_read(tmp_path, flags):
    ended = run_in(tmp_path, "check", "--html", "edits/page", *flags)
    assert ended.status == 2
    assert "lies in instance_data_dir of dataset 'edits'" in ended.err
    assert "scan" not in ended.err


@pytest.mark.parametrize("flag", [("--html", "pages"), ("--pixels",)])
def test_flags_of_check_are_refused_elsewhere(tmp_path, flags, flag):
    ended = run_in(tmp_path, "plan", *flag, *flags)
    assert ended.status == 2
    assert f"{flag[0]} works only with `difftrain check`" in ended.err


def test_a_page_that_cannot_show_all_pairs_is_told_beside_its_path(command, edit_pairs, monkeypatch):
    monkeypatch.setattr(page_rows, "MOST_ROWS", 3)
    datasets = edit_pairs(5)
    arguments = ("check", *edit_pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", "4")
    said = command(*arguments, "--html", "pages").err
    assert "note: the page shows 3 of 5 pairs, those with findings first; for the others set " in said
    monkeypatch.setattr(page_rows, "MOST_ROWS", 5)
    assert "note: the page shows" not in command(*arguments, "--html", "pages").err
