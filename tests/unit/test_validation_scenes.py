"""Which validation pictures a run draws, and how they are laid out."""

from types import SimpleNamespace

from PIL import Image
from test_epoch import sample

from difftrain.train.sheet import Row, draw_sheet
from difftrain.train.validate import choose_scenes


def config(**changes):
    return SimpleNamespace(**{"num_eval_images": 3, "validation_size": (1024, 1024)} | changes)


def test_pictures_are_taken_from_all_datasets_in_turn():
    samples = [sample(i, dataset="a") for i in range(5)] + [sample(i, dataset="b") for i in range(5)]
    names = [scene.name for scene in choose_scenes(samples, config(), {}, 16)]
    assert names == ["a-0", "b-1", "a-1"]


def test_every_sample_is_drawn_once_when_there_are_enough_pictures():
    samples = [sample(i, dataset="a") for i in range(3)] + [sample(i, dataset="b") for i in range(5)]
    names = [scene.name for scene in choose_scenes(samples, config(num_eval_images=20), {}, 16)]
    assert sorted(names) == [f"a-{i}" for i in range(3)] + [f"b-{i}" for i in range(5)]


def test_picture_has_the_resolutions_area_and_the_targets_aspect():
    (scene,) = choose_scenes([sample(0, (96, 48))], config(num_eval_images=1), {}, 16)
    width, height = scene.size
    assert (width % 16, height % 16) == (0, 0)
    assert abs(width * height / 1024**2 - 1) < 0.02
    assert abs(width / height - 2) < 0.05


def test_validation_prompts_use_the_references_of_the_samples_in_turn():
    samples = [sample(i) for i in range(2)]
    scenes = choose_scenes(samples, config(num_eval_images=2), {"p": "first", "q": "second"}, 16)
    assert [(scene.prompt, scene.references) for scene in scenes[2:]] == [
        ("first", samples[0].choices[0].references),
        ("second", samples[1].choices[0].references),
    ]
    assert all(scene.target is None for scene in scenes[2:])


def test_prompts_without_data_pictures_are_text_to_image_at_the_resolution():
    (scene,) = choose_scenes([sample(0)], config(num_eval_images=0), {"p": "a house"}, 16)
    assert scene.references == ()
    assert scene.size == (1024, 1024)


def test_sheet_lays_out_reference_result_target():
    colours = ("red", "green", "blue")
    reference, result, target = (Image.new("RGB", (64, 64), colour) for colour in colours)
    sheet = draw_sheet([Row(caption="edit", references=(reference,), result=result, target=target)], "step 1")
    middle = sheet.height - 100
    seen = [sheet.getpixel((8 + 264 * column + 128, middle)) for column in range(3)]
    assert seen == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def test_sheet_keeps_columns_aligned_when_rows_have_fewer_references():
    red, green = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "green")
    rows = [
        Row(caption="two", references=(red, red), result=green, target=None),
        Row(caption="none", references=(), result=green, target=None),
    ]
    sheet = draw_sheet(rows, "step 1")
    column = 8 + 2 * 264 + 128
    assert [sheet.getpixel((column, y)) for y in (200, sheet.height - 100)] == [(0, 128, 0)] * 2
