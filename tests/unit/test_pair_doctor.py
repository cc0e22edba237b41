"""The findings of the pair doctor, on pairs with one known fault each."""

import re
import sqlite3
from dataclasses import replace

import pytest
from data_plans import SilentReporter, data_plan, reference_set, rules, target_set

from difftrain.data.samples.prepare_samples import audit_samples, prepare_samples
from difftrain.doctor import alignment, record_findings
from difftrain.doctor.examine import FEW_PAIRS, examine_pairs
from difftrain.doctor.instructions import describes
from difftrain.doctor.kinds import KINDS
from difftrain.doctor.page_rows import COLUMNS, page_data
from pictures_of_pairs import edited, faulty_pairs, view, write_pair

PIXELS = {"shifted", "zoomed", "near_equal", "no_edit", "same_pixels"}
needs_opencv = pytest.mark.skipif(not alignment.can_estimate(), reason="needs opencv: pip install 'difftrain[doctor]'")


def plan_of(root):
    own = rules(resolution=320)
    return data_plan(
        root, target_set(root, references=["references"], own_rules=own), reference_set(root, own_rules=own)
    )


def examined(root, *, pixels="all", long_captions=None, reporter=None, thumbnails=None):
    plan = plan_of(root)
    prepared = prepare_samples(plan, reporter=SilentReporter())
    return examine_pairs(
        prepared.samples, prepared.findings, store_path=root / "cache" / "pixels.sqlite",
        reporter=reporter or SilentReporter(), pixels=pixels, long_captions=long_captions, thumbnails=thumbnails,
    )  # fmt: skip


class ListeningReporter(SilentReporter):
    """Remembers what is said."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


def names_by_kind(found):
    return {finding.kind: {name.partition(".")[0] for name in finding.names} for finding in found.findings}


@needs_opencv
def test_each_fault_is_found_in_its_pair_and_in_no_other(tmp_path):
    faulty_pairs(tmp_path)
    found = names_by_kind(examined(tmp_path, long_captions=lambda some: [one for one in some if len(one) > 1000]))
    kinds = {"shifted", "zoomed", "near_equal", "no_edit", "same_pixels", "tiny_reference", "caption_describes",
             "caption_empty", "caption_too_long"}  # fmt: skip
    assert found == {kind: {kind} for kind in kinds}


@needs_opencv
def test_references_that_a_generator_made_are_never_taken_for_shifted(tmp_path):
    faulty_pairs(tmp_path)
    prepared = prepare_samples(plan_of(tmp_path), reporter=SilentReporter())

    def made(image):
        return replace(image, record=replace(image.record, dataset_id="edits/blur"))

    samples = [
        replace(
            sample,
            choices=tuple(replace(choice, references=tuple(map(made, choice.references))) for choice in sample.choices),
        )
        for sample in prepared.samples
    ]
    found = examine_pairs(
        samples, [], store_path=tmp_path / "pixels.sqlite", reporter=SilentReporter(), pixels="all", long_captions=None
    )
    assert {"shifted", "zoomed"}.isdisjoint(names_by_kind(found))
    assert "near_equal" in names_by_kind(found)


@needs_opencv
def test_shifts_are_told_in_pixels_of_the_encoded_target(tmp_path):
    faulty_pairs(tmp_path)
    [finding] = (one for one in examined(tmp_path).as_json()["findings"] if one["kind"] == "shifted")
    [measures] = finding["measures"]
    # 480x320 is encoded at 384 pixels and more: 6 and -4 pixels become 4.9 and -3.3
    assert (measures["right"], measures["down"]) == pytest.approx((4.9, -3.27), abs=0.2)
    assert measures["reference"] == "shifted.png"
    assert re.search(r"shifted\.png \(4\.[89] px right, 3\.\d px up\)", finding["text"])


def test_findings_come_worst_first(tmp_path):
    faulty_pairs(tmp_path)
    found = examined(tmp_path)
    order = list(KINDS)
    levels = [finding.level for finding in found.findings]
    assert levels == sorted(levels, key=("problem", "note", "hint").index)
    notes = [order.index(finding.kind) for finding in found.findings if finding.level == "note"]
    assert notes == sorted(notes)


def test_without_opencv_the_rest_is_found_and_the_row_says_what_to_install(tmp_path, monkeypatch):
    faulty_pairs(tmp_path)
    monkeypatch.setattr(alignment, "can_estimate", lambda: False)
    found = examined(tmp_path)
    assert not {"shifted", "zoomed"} & names_by_kind(found).keys()
    assert {"near_equal", "no_edit", "same_pixels"} <= names_by_kind(found).keys()
    assert "pip install 'difftrain[doctor]'" in " ".join(one.why for one in found.not_checked)


def test_a_second_run_compares_nothing_again(tmp_path):
    faulty_pairs(tmp_path)
    first, again = SilentReporter(), SilentReporter()
    one, other = examined(tmp_path, reporter=first), examined(tmp_path, reporter=again)
    assert first.phases == {"compare pixels": 10}
    assert again.phases == {}
    assert one.as_json() == other.as_json()


def test_only_changed_pairs_are_compared_again(tmp_path):
    faulty_pairs(tmp_path)
    examined(tmp_path)
    write_pair(tmp_path, "good", view("coffee"), edited(view("coffee"), (10, 10, 60, 60)))
    again = SilentReporter()
    examined(tmp_path, reporter=again)
    assert again.phases == {"compare pixels": 1}


def test_a_damaged_store_is_made_anew(tmp_path):
    faulty_pairs(tmp_path)
    whole = examined(tmp_path).as_json()
    store = tmp_path / "cache" / "pixels.sqlite"
    store.write_bytes(b"no database" * 100)
    told = ListeningReporter()
    assert examined(tmp_path, reporter=told).as_json() == whole
    assert [line for line in told.said if "pixels.sqlite" in line] == [
        f"note: {store} cannot be used (file is not a database); it is made anew, and pairs are compared again"
    ]
    assert sqlite3.connect(store).execute("SELECT count(*) FROM measures").fetchone()[0] > 0


def test_a_store_that_another_program_locks_is_left_to_it_and_told(tmp_path, monkeypatch):
    faulty_pairs(tmp_path)
    whole = examined(tmp_path).as_json()
    store = tmp_path / "cache" / "pixels.sqlite"
    other = sqlite3.connect(store)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr("difftrain.doctor.measures.BUSY_SECONDS", 0.01)
    told = ListeningReporter()
    assert examined(tmp_path, reporter=told).as_json() == whole
    assert any(
        "cannot be used (database is locked); what is compared now is not remembered" in line for line in told.said
    )
    other.rollback()
    assert other.execute("SELECT count(*) FROM measures").fetchone()[0] > 0


def test_many_new_pairs_are_compared_only_when_asked(tmp_path, monkeypatch):
    faulty_pairs(tmp_path)
    monkeypatch.setattr("difftrain.doctor.examine.FEW_PAIRS", 9)
    waiting = examined(tmp_path, pixels="few")
    assert not PIXELS & names_by_kind(waiting).keys()
    assert "the pixels of 10 pairs are not compared; --pixels does it, in about" in waiting.not_checked[0].why
    examined(tmp_path, pixels="all")
    assert names_by_kind(examined(tmp_path, pixels="few")).keys() >= {"near_equal", "no_edit"}
    assert FEW_PAIRS >= 100


def test_pairs_of_equal_content_are_compared_once(tmp_path):
    for name in "abcd":
        write_pair(tmp_path, name, view(), edited(view()))
    reporter = SilentReporter()
    found = examined(tmp_path, reporter=reporter)
    assert reporter.phases == {"compare pixels": 1}
    assert found.as_json()["pairs"] == {"total": 4, "without_reference": 0, "comparable": 4, "compared": 4}


def test_data_with_problems_is_examined_as_far_as_it_goes(tmp_path):
    faulty_pairs(tmp_path)
    (tmp_path / "references" / "good.png").unlink()
    (tmp_path / "edits" / "zoomed.png").write_bytes(b"no image")
    audited = audit_samples(plan_of(tmp_path), reporter=SilentReporter())
    assert len(audited.samples) == 8
    found = examine_pairs(
        audited.samples, audited.findings, store_path=tmp_path / "cache" / "pixels.sqlite", reporter=SilentReporter(),
        pixels="all", long_captions=None, thumbnails=tmp_path / "thumbnails",
    )  # fmt: skip
    assert [finding.kind for finding in found.findings][:2] == ["unreadable", "unmatched"]
    [row] = (row for row in rows_of(found, tmp_path) if row["name"] == "good.png")
    assert row["reference_name"] is None
    assert row["kinds"] == [list(KINDS).index("unmatched")]
    assert row["thumbnail"]


def rows_of(found, folder):
    data = page_data(found, folder / "thumbnails", {})
    return [dict(zip(COLUMNS, row, strict=True)) for row in data["rows"]]


def test_a_row_has_the_crop_that_training_uses(tmp_path):
    write_pair(tmp_path, "a", view(), edited(view()))
    found = examined(tmp_path, thumbnails=tmp_path / "thumbnails")
    [row] = rows_of(found, tmp_path)
    [sample] = prepare_samples(plan_of(tmp_path), reporter=SilentReporter()).samples
    geometry = sample.target.geometry
    assert row["bucket"] == list(geometry.bucket)
    left, top, width, height = row["crop"]
    assert (left * geometry.resize[0], top * geometry.resize[1]) == pytest.approx(geometry.crop, abs=0.1)
    cut = width * geometry.resize[0], height * geometry.resize[1]
    assert cut == pytest.approx(geometry.bucket, abs=0.1)
    assert row["crop"] == row["reference_crop"]
    assert (tmp_path / "thumbnails" / row["thumbnail"]).is_file()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of a cat on a mat", True),
        ("A man in a suit", True),
        ("there is a boat near the shore", True),
        ("make it red", False),
        ("the cat, wearing a hat", False),
        ("The sky should be blue", False),
        ("put a hat on the cat", False),
        ("a dog", False),
        ("sks style", False),
        ("un chat sur un tapis", False),
        ("", False),
    ],
)
def test_captions_that_describe_are_guessed(caption, expected):
    assert describes(caption) is expected


def test_captions_are_tokenised_a_few_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(record_findings, "CAPTIONS_AT_ONCE", 3)
    for number in range(7):
        write_pair(tmp_path, str(number), edited(view("astronaut")), view("astronaut"), caption=f"make it {number}")
    asked = []

    def long_captions(captions):
        asked.append(len(captions))
        return [caption for caption in captions if caption.endswith(("1", "5"))]

    found = examined(tmp_path, pixels="none", long_captions=long_captions)
    assert asked == [3, 3, 1]
    assert names_by_kind(found)["caption_too_long"] == {"1", "5"}
