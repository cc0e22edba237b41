import json
import shutil
from dataclasses import replace

import pytest
from data_plans import (
    SilentReporter,
    caption,
    data_plan,
    generator_plan,
    new_image,
    reference_set,
    rules,
    target_set,
    two_folders,
)

from difftrain import DataError, MachineError
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain_conditioning_generators.jpeg_artifacts import JpegArtifacts
from difftrain_conditioning_generators.superresolution import Superresolution
from difftrain_flux_kontext.pairing import ReferenceLoose


def prepare(plan):
    return prepare_samples(plan, reporter=SilentReporter())


def problems_of(plan):
    with pytest.raises(DataError) as raised:
        prepare(plan)
    return str(raised.value)


def test_all_problems_of_all_pairs_are_reported_at_once(tmp_path):
    plan = two_folders(tmp_path, names="abcdef")
    references = tmp_path / "references"
    (references / "a.png").unlink()
    (references / "b.png").rename(references / "b.webp")
    shutil.copy(references / "b.webp", references / "b.jpg")
    (references / "c.png").write_bytes(b"no image")
    new_image(references / "d.png", (60, 90))
    (tmp_path / "edits" / "e.txt").unlink()
    message = problems_of(plan)
    assert message.startswith("5 problems")
    assert "1 of 6 images have no reference in 'references': a.png" in message
    assert "b.png (could be b.jpg or b.webp)" in message
    assert "c.png (not an image file, or an unknown format)" in message
    assert "d.png is 60x90, but its target image is 96x64" in message
    assert "images have no caption: e.png" in message


def test_missing_references_are_counted_with_the_first_names(tmp_path):
    plan = two_folders(tmp_path, names="abcdef")
    for name in "bcde":
        (tmp_path / "references" / f"{name}.png").unlink()
    message = problems_of(plan)
    assert "dataset 'edits': 4 of 6 images have no reference in 'references': b.png, c.png, d.png, ..." in message
    assert "hint:" in message


def test_references_missing_in_two_sets_are_reported_for_both(tmp_path):
    plan = two_reference_sets(tmp_path, combined=False)
    for folder in ("sketches", "references"):
        (tmp_path / folder / "a.png").unlink()
    message = problems_of(plan)
    assert "1 of 2 images have no reference in 'sketches': a.png" in message
    assert "1 of 2 images have no reference in 'references': a.png" in message


def test_name_that_differs_in_case_only_is_pointed_out(tmp_path):
    plan = two_folders(tmp_path)
    (tmp_path / "references" / "b.png").rename(tmp_path / "references" / "B.png")
    assert "upper and lower case: b.png and B.png" in problems_of(plan)


def test_missing_references_are_left_out_and_counted_when_asked(tmp_path):
    two_folders(tmp_path)
    (tmp_path / "references" / "b.png").unlink()
    plan = data_plan(
        tmp_path, target_set(tmp_path, references=["references"], on_missing="skip"), reference_set(tmp_path)
    )
    prepared = prepare(plan)
    assert [sample.target.record.key for sample in prepared.samples] == ["a", "c"]
    assert prepared.left_out["edits"] == {"on_missing": 1}
    assert any("left out (on_missing: skip)" in note for note in prepared.notes)


def test_reference_below_its_size_limit_leaves_the_pair_out_instead_of_missing(tmp_path):
    two_folders(tmp_path)
    new_image(tmp_path / "references" / "b.png", (12, 8))
    plan = data_plan(
        tmp_path, target_set(tmp_path, references=["references"]), reference_set(tmp_path, minimum_image_size=32)
    )
    prepared = prepare(plan)
    assert len(prepared.samples) == 2
    assert prepared.left_out["edits"] == {"limit or filter of the reference": 1}


def test_nothing_is_made_while_pairs_have_problems(tmp_path):
    two_folders(tmp_path)
    (tmp_path / "references" / "b.png").unlink()
    made = generator_plan(tmp_path, Superresolution())
    plan = data_plan(
        tmp_path, target_set(tmp_path, references=["references"], generators=[made]), reference_set(tmp_path)
    )
    problems_of(plan)
    assert not made.folder.exists()


def test_missing_folders_of_two_datasets_are_reported_together(tmp_path):
    plan = data_plan(tmp_path, target_set(tmp_path, references=["references"]), reference_set(tmp_path))
    message = problems_of(plan)
    assert "dataset 'edits'" in message
    assert "dataset 'references'" in message


def test_odd_but_usable_pairs_are_notes(tmp_path):
    plan = two_folders(tmp_path, names="abcd")
    edits, references = tmp_path / "edits", tmp_path / "references"
    shutil.copy(edits / "a.png", references / "a.png")
    shutil.copy(edits / "c.png", edits / "b.png")
    caption(edits / "d.png", "")
    new_image(references / "extra.png")
    notes = "\n".join(prepare(plan).notes)
    assert "1 of 4 references in 'references' are the target images themselves, so nothing is edited: a.png" in notes
    assert "1 images are duplicates: c.png = b.png" in notes
    assert "1 images have an empty caption: d.png" in notes
    assert "1 references have no target image: extra.png" in notes


def test_target_set_without_references_is_fine(tmp_path):
    caption(new_image(tmp_path / "edits" / "a.png"), "red")
    [sample] = prepare(data_plan(tmp_path, target_set(tmp_path))).samples
    assert [choice.references for choice in sample.choices] == [()]


def test_no_caption_strategy_trains_on_the_empty_caption_with_one_note(tmp_path):
    new_image(tmp_path / "edits" / "a.png", seed=1)
    new_image(tmp_path / "edits" / "b.png", seed=2)
    prepared = prepare(data_plan(tmp_path, target_set(tmp_path, captions=False)))
    assert [sample.captions for sample in prepared.samples] == [("",), ("",)]
    assert len(prepared.notes) == 1


def two_reference_sets(tmp_path, *, combined):
    two_folders(tmp_path, names="ab")
    for name in "ab":
        caption(new_image(tmp_path / "sketches" / f"{name}.png", seed=ord(name)), f"colour {name}")
    return data_plan(
        tmp_path,
        target_set(tmp_path, references=["sketches", "references"]),
        reference_set(tmp_path),
        reference_set(tmp_path, "sketches", captions=not combined),
        combined=combined,
    )


def test_combined_shows_all_references_in_listed_order_with_the_edit_captions(tmp_path):
    sample = prepare(two_reference_sets(tmp_path, combined=True)).samples[0]
    [choice] = sample.choices
    assert [placed.record.dataset_id for placed in choice.references] == ["sketches", "references"]
    assert choice.captions is None
    assert sample.captions == ("edit a",)


def test_random_gives_one_choice_a_set_with_its_own_captions(tmp_path):
    sample = prepare(two_reference_sets(tmp_path, combined=False)).samples[0]
    assert [(choice.references[0].record.dataset_id, choice.captions) for choice in sample.choices] == [
        ("sketches", ("colour a",)),
        ("references", None),
    ]


def test_references_that_must_fit_their_targets_are_named_where_they_do_not(tmp_path):
    two_folders(tmp_path, names="ab")
    small = reference_set(tmp_path, pairing=ReferenceLoose(), own_rules=rules(resolution=64))
    edits = target_set(tmp_path, references=["references"])
    assert len(prepare(data_plan(tmp_path, edits, small)).samples) == 2
    with pytest.raises(DataError) as told:
        prepare(data_plan(tmp_path, edits, small, references_fit_target=True))
    assert "2 of 2 references in 'references' do not fit: a would be encoded at 64x64, but its target" in str(
        told.value
    )
    assert 'and use "conditioning_type": "reference_strict"' in str(told.value)


def test_captions_of_the_only_reference_set_are_used(tmp_path):
    two_folders(tmp_path, names="a")
    caption(tmp_path / "references" / "a.png", "sharpen")
    plan = data_plan(tmp_path, target_set(tmp_path, references=["references"]), reference_set(tmp_path, captions=True))
    assert prepare(plan).samples[0].choices[0].captions == ("sharpen",)


def test_captions_of_the_only_generator_do_for_edits_without_any(tmp_path):
    new_image(tmp_path / "edits" / "a.png")
    made = generator_plan(tmp_path, Superresolution(), captions=("deblur", "sharpen"))
    [sample] = prepare(data_plan(tmp_path, target_set(tmp_path, generators=[made]))).samples
    assert sample.choices[0].captions == sample.captions == ("deblur", "sharpen")


def test_generators_add_to_the_reference_sets(tmp_path):
    two_folders(tmp_path, names="a")
    generators = [
        generator_plan(tmp_path, Superresolution(), number=1),
        generator_plan(tmp_path, JpegArtifacts(), on_demand=True, number=2),
    ]
    plan = data_plan(
        tmp_path, target_set(tmp_path, references=["references"], generators=generators), reference_set(tmp_path)
    )
    [sample] = prepare(plan).samples
    assert [choice.references[0].record.dataset_id for choice in sample.choices] == [
        "references",
        "edits/superresolution-1",
        "edits/jpeg_artifacts-2",
    ]


def test_sample_limit_keeps_the_same_samples_when_one_is_added(tmp_path):
    for number in range(12):
        caption(new_image(tmp_path / "edits" / f"{number:02}.png", seed=number), "red")
    plan = data_plan(tmp_path, target_set(tmp_path, max_num_samples=5))
    before = {sample.target.record.key for sample in prepare(plan).samples}
    caption(new_image(tmp_path / "edits" / "new.png", seed=99), "red")
    after = {sample.target.record.key for sample in prepare(plan).samples}
    assert len(before) == len(after) == 5
    assert len(before & after) >= 4


def test_random_crop_rests_on_content_not_on_the_name(tmp_path):
    cropped = rules(crop=True, crop_aspect="square", crop_style="random")
    caption(new_image(tmp_path / "edits" / "a.png", (400, 100)), "red")
    plan = data_plan(tmp_path, target_set(tmp_path, own_rules=cropped))
    [before] = prepare(plan).samples
    for suffix in ("png", "txt"):
        (tmp_path / "edits" / f"a.{suffix}").rename(tmp_path / "edits" / f"z.{suffix}")
    [after] = prepare(plan).samples
    assert before.target.geometry == after.target.geometry


def test_everything_left_out_is_an_error(tmp_path):
    caption(new_image(tmp_path / "edits" / "a.png"), "red")
    assert "no samples" in problems_of(data_plan(tmp_path, target_set(tmp_path, minimum_image_size=4000)))


def test_summary_is_json_with_counts_and_buckets(tmp_path):
    summary = json.loads(json.dumps(prepare(two_folders(tmp_path)).summary()))
    assert summary["samples"] == 3
    assert summary["buckets"] == summary["reference_buckets"] == {"160x96": 3}
    assert summary["datasets"]["edits"] == {
        "images": 3,
        "samples": 3,
        "left_out": {},
        "repeats": 0,
        "held_out": False,
    }
    assert summary["files"] == {"scanned": 6, "hashed": 6, "captions_read": 3, "made": 0}


def test_phases_are_named_and_counted(tmp_path):
    reporter = SilentReporter()
    prepare_samples(two_folders(tmp_path), reporter=reporter)
    assert reporter.phases == {
        "look at the files of edits": 6, "look at the files of references": 3,
        "scan edits": 3, "scan references": 3, "pair edits": 3,
    }  # fmt: skip


def test_cache_folders_that_cannot_be_made_are_all_told_before_anything_is_read(tmp_path):
    two_folders(tmp_path)
    (tmp_path / "file").write_text("a file")
    made = replace(generator_plan(tmp_path, Superresolution()), folder=tmp_path / "file" / "made")
    edits = replace(target_set(tmp_path, generators=[made]), latents_folder=tmp_path / "file")
    with pytest.raises(MachineError) as raised:
        prepare(replace(data_plan(tmp_path, edits), text_folder=tmp_path / "file" / "text"))
    message = str(raised.value)
    assert message.startswith("3 problems")
    for name in ("dataset 'edits': cache_dir_vae", "edits/superresolution-1: instance_data_dir", "text embeddings"):
        assert name in message
    assert not (tmp_path / "cache").exists()


def test_a_sample_limit_hides_no_missing_reference(tmp_path):
    two_folders(tmp_path, names="abcdef")
    for name in "bcde":
        (tmp_path / "references" / f"{name}.png").unlink()
    plan = data_plan(
        tmp_path, target_set(tmp_path, references=["references"], max_num_samples=1), reference_set(tmp_path)
    )
    assert "4 of 6 images have no reference in 'references': b.png, c.png, d.png, ..." in problems_of(plan)


def test_a_sample_limit_counts_complete_pairs_only(tmp_path):
    two_folders(tmp_path, names="abcdef")
    for name in "abcd":
        (tmp_path / "references" / f"{name}.png").unlink()
    edits = target_set(tmp_path, references=["references"], on_missing="skip", max_num_samples=2)
    prepared = prepare(data_plan(tmp_path, edits, reference_set(tmp_path)))
    assert [sample.target.record.key for sample in prepared.samples] == ["e", "f"]
    assert prepared.left_out["edits"] == {"on_missing": 4}


@pytest.mark.parametrize("folder", ["edits", "references"])
def test_unreadable_caption_is_one_problem(tmp_path, folder):
    two_folders(tmp_path)
    (tmp_path / "edits" / "b.txt").unlink()
    (tmp_path / folder / "b.txt").write_bytes(b"\xff\xfe\xfd")
    references = reference_set(tmp_path, captions=True)
    message = problems_of(data_plan(tmp_path, target_set(tmp_path, references=["references"]), references))
    assert message.startswith(f"dataset '{folder}': 1 captions cannot be read")


def test_a_target_set_without_samples_names_its_limits_though_another_has_some(tmp_path):
    for folder in ("edits", "small"):
        caption(new_image(tmp_path / folder / "a.png"), "red")
    plan = data_plan(tmp_path, target_set(tmp_path), target_set(tmp_path, "small", minimum_image_size=4000))
    assert problems_of(plan).startswith(
        "dataset 'small': no samples are left; left out: 1 by minimum_image_size = 4000\nhint:"
    )


def copied(root, names="abc", *, of="abc", **options):
    """Write two folders in which these references are the target images themselves."""
    two_folders(root, names=of)
    for name in names:
        shutil.copy(root / "edits" / f"{name}.png", root / "references" / f"{name}.png")
    return data_plan(root, target_set(root, references=["references"], **options), reference_set(root))


def test_references_that_are_all_the_target_images_themselves_are_an_error(tmp_path):
    message = problems_of(copied(tmp_path))
    assert message.startswith(
        "dataset 'edits': all 3 references in 'references' are the target images themselves, so nothing would be "
        "learnt but to copy: a.png, b.png, c.png\nhint:"
    )
    assert '"allow_identical_references": true' in message


def test_one_folder_as_edits_and_references_is_an_error(tmp_path):
    two_folders(tmp_path)
    references = replace(reference_set(tmp_path), source=target_set(tmp_path).source)
    assert "are the target images themselves" in problems_of(
        data_plan(tmp_path, target_set(tmp_path, references=["references"]), references)
    )


def test_identical_references_may_be_asked_for(tmp_path):
    prepared = prepare(copied(tmp_path, allow_identical_references=True))
    assert len(prepared.samples) == 3
    assert "3 of 3 references in 'references' are the target images themselves" in "\n".join(prepared.notes)


def test_some_identical_references_are_a_note(tmp_path):
    notes = "\n".join(prepare(copied(tmp_path, "ab")).notes)
    assert (
        "2 of 3 references in 'references' are the target images themselves, so nothing is edited: a.png, b.png"
        in notes
    )


@pytest.mark.parametrize("combined", [False, True])
def test_one_reference_set_of_copies_beside_another_of_edits_is_an_error(tmp_path, combined):
    plan = two_reference_sets(tmp_path, combined=combined)
    for name in "ab":
        shutil.copy(tmp_path / "edits" / f"{name}.png", tmp_path / "sketches" / f"{name}.png")
    message = problems_of(plan)
    assert "all 2 references in 'sketches'" in message
    assert "'references'" not in message


def test_made_references_are_never_called_copies(tmp_path):
    caption(new_image(tmp_path / "edits" / "a.png"), "red")
    made = generator_plan(tmp_path, Superresolution(), on_demand=True)
    assert prepare(data_plan(tmp_path, target_set(tmp_path, generators=[made]))).notes == ()


def test_references_that_are_target_images_of_other_pairs_are_a_note(tmp_path):
    plan = two_folders(tmp_path)
    shutil.copy(tmp_path / "edits" / "b.png", tmp_path / "references" / "a.png")
    notes = "\n".join(prepare(plan).notes)
    assert "1 of 3 references in 'references' are target images of other pairs: a.png = b.png" in notes
