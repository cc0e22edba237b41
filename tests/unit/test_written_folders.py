"""Files that runs write never become training data, wherever they are."""

import shutil
from dataclasses import replace

import pytest
from data_plans import SilentReporter, caption, data_plan, generator_plan, new_image, target_set, two_folders

from difftrain import DataError
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain_conditioning_generators.superresolution import Superresolution


def prepare(plan):
    return prepare_samples(plan, reporter=SilentReporter())


def keys(prepared):
    return [sample.target.record.key for sample in prepared.samples]


def one_edit(root, name="a.png"):
    caption(new_image(root / name), "red")


def sheets(output):
    """Write images as validations draw them, with a caption each, so that only the folder can leave them out."""
    for name in ("validation/step-10/sheet.png", "previous-1/validation/step-20/cat.png"):
        caption(new_image(output / name), "drawn")


def with_output(plan, output):
    return replace(plan, written_folders={**plan.written_folders, "output_dir": output})


def test_output_folder_below_the_root_is_no_data_and_is_counted(tmp_path):
    one_edit(tmp_path / "edits")
    sheets(tmp_path / "edits" / "out")
    prepared = prepare(with_output(data_plan(tmp_path, target_set(tmp_path)), tmp_path / "edits" / "out"))
    assert keys(prepared) == ["a"]
    [note] = prepared.notes
    assert note == (
        f"dataset 'edits': 2 images are left out because they are in folders that runs write: "
        f"output_dir {tmp_path / 'edits' / 'out'} (2)"
    )


def test_output_folder_reached_by_a_link_is_no_data(tmp_path):
    one_edit(tmp_path / "edits")
    sheets(tmp_path / "out")
    (tmp_path / "edits" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "edits" / "deeper").symlink_to(tmp_path / "out" / "validation")
    prepared = prepare(with_output(data_plan(tmp_path, target_set(tmp_path)), tmp_path / "out"))
    assert keys(prepared) == ["a"]


def test_output_folder_named_by_a_link_is_no_data(tmp_path):
    one_edit(tmp_path / "edits")
    sheets(tmp_path / "edits" / "out")
    (tmp_path / "named").symlink_to(tmp_path / "edits" / "out")
    assert keys(prepare(with_output(data_plan(tmp_path, target_set(tmp_path)), tmp_path / "named"))) == ["a"]


def test_data_inside_the_output_folder_are_data(tmp_path):
    one_edit(tmp_path / "edits")
    sheets(tmp_path)
    prepared = prepare(with_output(data_plan(tmp_path, target_set(tmp_path)), tmp_path))
    assert keys(prepared) == ["a"]
    assert prepared.notes == ()


def test_of_a_root_that_is_the_output_folder_only_the_runs_own_parts_are_left_out(tmp_path):
    one_edit(tmp_path / "edits")
    sheets(tmp_path / "edits")
    one_edit(tmp_path / "edits" / "checkpoint-10", "preview.png")
    one_edit(tmp_path / "edits" / "mine", "b.png")
    prepared = prepare(with_output(data_plan(tmp_path, target_set(tmp_path)), tmp_path / "edits"))
    assert keys(prepared) == ["a", "mine/b"]
    assert "3 images are left out" in prepared.notes[0]


def test_images_of_a_run_that_are_named_as_the_root_are_used_with_a_note(tmp_path):
    sheets(tmp_path / "out")
    edits = target_set(tmp_path, "out/validation")
    prepared = prepare(with_output(data_plan(tmp_path, edits), tmp_path / "out"))
    assert keys(prepared) == ["step-10/sheet"]
    assert "is inside output_dir" in prepared.notes[0]


def test_results_of_another_run_below_the_root_are_no_data(tmp_path):
    one_edit(tmp_path / "edits")
    sheets(tmp_path / "edits" / "old")
    state = tmp_path / "edits" / "old" / "checkpoint-10" / "resume" / "state.json"
    state.parent.mkdir(parents=True)
    state.touch()
    assert keys(prepare(data_plan(tmp_path, target_set(tmp_path)))) == ["a"]


def test_a_folder_called_validation_is_data_where_no_run_wrote_it(tmp_path):
    one_edit(tmp_path / "edits", "validation/a.png")
    one_edit(tmp_path / "edits", "checkpoint-1/b.png")
    assert keys(prepare(data_plan(tmp_path, target_set(tmp_path)))) == ["checkpoint-1/b", "validation/a"]


def test_made_images_of_another_entry_are_no_data_at_the_second_start(tmp_path):
    for name in "abcd":
        caption(new_image(tmp_path / "all" / "edits" / f"{name}.png", seed=ord(name)), "red")
    made = replace(generator_plan(tmp_path, Superresolution()), folder=tmp_path / "all" / "made")
    inner = replace(target_set(tmp_path, "all/edits", generators=[made]), latents_folder=tmp_path / "cache" / "inner")
    outer = replace(target_set(tmp_path, "all"), latents_folder=tmp_path / "cache" / "outer")
    plan = data_plan(tmp_path, inner, outer)
    first = prepare(plan)
    assert first.made == 4
    assert keys(prepare(plan)) == keys(first)


def test_nothing_but_written_images_says_so(tmp_path):
    sheets(tmp_path / "edits" / "out")
    plan = with_output(data_plan(tmp_path, target_set(tmp_path)), tmp_path / "edits" / "out")
    with pytest.raises(DataError) as raised:
        prepare(plan)
    assert "has no images; left out: 2 images in folders that runs write" in str(raised.value)


def test_cache_of_the_run_below_the_root_is_no_data(tmp_path):
    two_folders(tmp_path)
    shutil.move(tmp_path / "edits" / "a.png", tmp_path / "edits" / "z.png")
    shutil.move(tmp_path / "edits" / "a.txt", tmp_path / "edits" / "z.txt")
    one_edit(tmp_path / "edits" / "cache" / "made" / "old" / "jpeg", "ab/abc.png")
    plan = data_plan(tmp_path, target_set(tmp_path))
    plan = replace(plan, written_folders={**plan.written_folders, "cache_dir": tmp_path / "edits" / "cache"})
    assert keys(prepare(plan)) == ["b", "c", "z"]
