"""Which validation images a run draws, and how they are laid out."""

from types import SimpleNamespace

from PIL import Image
from test_epoch import placed, sample

from difftrain.types import ReferenceChoice
from difftrain.validation.scenes import choose_scenes
from difftrain.validation.sheet import CELL, GAP, Row, Shown, draw_sheet


def config(**changes):
    return SimpleNamespace(
        **{"num_eval_images": 3, "validation_size": (1024, 1024), "validation_num_seeds": 1} | changes
    )


def test_images_are_taken_from_all_datasets_in_turn():
    samples = [sample(i, dataset="a") for i in range(5)] + [sample(i, dataset="b") for i in range(5)]
    names = [scene.name for scene in choose_scenes(samples, config(), {}, 16)]
    assert names == ["a-0", "b-1", "a-1"]


def test_every_sample_is_drawn_once_when_there_are_enough_images():
    samples = [sample(i, dataset="a") for i in range(3)] + [sample(i, dataset="b") for i in range(5)]
    names = [scene.name for scene in choose_scenes(samples, config(num_eval_images=20), {}, 16)]
    assert sorted(names) == [f"a-{i}" for i in range(3)] + [f"b-{i}" for i in range(5)]


def test_every_reference_set_or_generator_of_a_dataset_is_drawn_in_turn():
    choices = [ReferenceChoice(references=(placed(name, (64, 64)),), captions=(f"undo {name}",)) for name in "ab"]
    samples = [sample(i, dataset=name, choices=tuple(choices)) for name in "xy" for i in range(2)]
    scenes = choose_scenes(samples, config(num_eval_images=4), {}, 16)
    assert [(scene.name[0], scene.prompt, scene.references[0].record.key) for scene in scenes] == [
        ("x", "undo a", "a"),
        ("y", "undo a", "a"),
        ("x", "undo b", "b"),
        ("y", "undo b", "b"),
    ]


def test_image_has_the_resolutions_area_and_the_targets_aspect():
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


def test_prompts_without_data_images_are_text_to_image_at_the_resolution():
    (scene,) = choose_scenes([sample(0)], config(num_eval_images=0), {"p": "a house"}, 16)
    assert scene.references == ()
    assert scene.size == (1024, 1024)


def test_scenes_whose_names_would_share_a_file_get_names_of_their_own():
    samples = [sample("a/b"), sample("a-b"), sample("a-b-seed-2")]
    scenes = choose_scenes(samples, config(validation_num_seeds=2), {"sheet": "a house"}, 16)
    assert [scene.name for scene in scenes] == ["edits-a-b", "edits-a-b-2", "edits-a-b-seed-2-2", "sheet-2"]


def coloured(colour, note=""):
    return Shown(image=Image.new("RGB", (64, 64), colour), note=note)


def colours_across(sheet, y):
    """Return the colour in the middle of each column, at this height."""
    columns = sheet.width // (CELL + GAP)
    return [sheet.getpixel((GAP + column * (CELL + GAP) + CELL // 2, y)) for column in range(columns)]


RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 128, 0), (0, 0, 255), (0, 0, 0)


def test_sheet_lays_out_reference_result_target():
    row = Row(caption="edit", references=(coloured("red"),), result=coloured("green"), target=coloured("blue"))
    sheet = draw_sheet([row], "step 1", step=1)
    assert colours_across(sheet, sheet.height - 100) == [RED, GREEN, BLUE]


def test_sheet_with_base_images_lays_them_before_the_result():
    row = Row(
        caption="edit",
        references=(coloured("red"),),
        base=coloured("black"),
        result=coloured("green"),
        target=coloured("blue"),
    )
    sheet = draw_sheet([row], "step 1", step=1)
    assert colours_across(sheet, sheet.height - 100) == [RED, BLACK, GREEN, BLUE]


def test_sheet_writes_notes_below_their_images():
    plain, noted = (
        draw_sheet([Row(caption="edit", references=(), result=coloured("green", note), target=None)], "step 1", step=1)
        for note in ("", "21.9 dB")
    )
    assert noted.height > plain.height
    # nothing is written below the image, which ends where the plain sheet ends except for its gap
    below = noted.crop((GAP, plain.height - GAP, GAP + CELL, noted.height))
    assert min(below.convert("L").getdata()) < 200


def test_sheet_keeps_columns_aligned_when_rows_have_fewer_references():
    rows = [
        Row(caption="two", references=(coloured("red"), coloured("red")), result=coloured("green"), target=None),
        Row(caption="none", references=(), result=coloured("green"), target=None),
    ]
    sheet = draw_sheet(rows, "step 1", step=1)
    assert [colours_across(sheet, y)[2] for y in (200, sheet.height - 100)] == [GREEN] * 2
