"""The dataset list: how entries work together, and the messages when they contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_runs import error_of, pair, plan, reference_set, run_values, target_set

BLUR = {"type": "superresolution", "blur_radius": 3.0}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_unknown_key_names_file_line_dataset_and_nearest_key():
    text = '[\n {"id": "a",\n  "instance_data_dir": "a"},\n {"id": "b",\n  "instance_data_dir": "b", "repeets": 1}\n]'
    message = error_of(datasets=text)
    assert message == "datasets.json:5: dataset 'b': unknown key 'repeets'; did you mean 'repeats'?"


def test_a_value_of_the_wrong_type_names_the_dataset():
    message = error_of(datasets=[target_set(resolution="large")])
    assert message == "datasets.json:1: dataset 'edits': resolution must be a number, got \"large\""


def test_a_duplicate_id_is_an_error():
    message = error_of(datasets=[target_set(), target_set(instance_data_dir="other")])
    assert message == "datasets.json: dataset id 'edits' is used by 2 datasets; every id must be unique"


def test_a_shared_cache_folder_is_an_error():
    message = error_of(
        datasets=[target_set(id="a", cache_dir_vae="vae"), target_set(id="b", cache_dir_vae="./x/../vae")]
    )
    assert message.startswith("dataset 'a' and dataset 'b' share one cache folder")


def test_a_text_cache_inside_a_latents_folder_of_the_same_name_is_an_error():
    text = {"id": "text", "dataset_type": "text_embeds", "cache_dir": "vae"}
    assert "the text embeddings and dataset 'edits' share" in error_of(datasets=[target_set(cache_dir_vae="vae"), text])


def test_an_unknown_reference_set_gets_the_nearest_id():
    message = error_of(datasets=[target_set(conditioning_data=["ref"]), reference_set()])
    assert "conditioning_data names no enabled dataset 'ref'; did you mean 'refs'?" in message


def test_a_disabled_reference_set_is_not_there():
    message = error_of(datasets=[target_set(conditioning_data="refs"), reference_set(disabled=True)])
    assert "names no enabled dataset 'refs'" in message


def test_a_disabled_entry_may_hold_anything():
    assert [
        one.id for one in plan(datasets=[target_set(), {"id": "x", "disabled": "true", "nonsense": 1}]).data.datasets
    ] == ["edits"]


def test_a_reference_set_that_nobody_names_is_noted_and_left_out():
    run = plan(datasets=[target_set(), reference_set()])
    assert [dataset.id for dataset in run.data.datasets] == ["edits"]
    assert run.notes == ("dataset 'refs': not used, no target set names it in conditioning_data",)


def test_a_reference_set_needs_a_conditioning_type():
    datasets = [target_set(conditioning_data="refs"), reference_set(conditioning_type=..., dataset_type="conditioning")]
    message = error_of(datasets=datasets)
    assert message == (
        "dataset 'refs': a reference set needs a conditioning_type; known: reference_loose, reference_strict"
    )


def test_a_list_of_references_only_is_an_error():
    assert "has no enabled dataset to train on" in error_of(datasets=[reference_set()])


def test_combined_with_captions_on_a_reference_set_is_an_error():
    datasets = [target_set(conditioning_data="refs"), reference_set(caption_strategy="textfile")]
    message = error_of(run_values(conditioning_multidataset_sampling="combined"), datasets)
    assert message.startswith("dataset 'refs': caption_strategy 'textfile' would never be used")


def test_combined_with_captions_on_a_generator_is_an_error():
    datasets = [target_set(conditioning={**BLUR, "captions": "sharpen"})]
    message = error_of(run_values(conditioning_multidataset_sampling="combined"), datasets)
    assert message.startswith("dataset 'edits': captions on conditioning 'superresolution' would never be used")


def test_a_reference_set_has_no_captions_unless_it_says_so():
    assert plan(run_values(caption_strategy="filename")).data.by_id("refs").captions is None


def test_references_on_a_flavour_that_takes_none_name_one_that_does():
    message = error_of(run_values(model_flavour="dev"))
    assert message == (
        "dataset 'edits': has references, but flavour 'dev' of 'flux' takes none\n"
        "hint: set model_flavour; those that take references: kontext"
    )


def test_more_combined_references_than_the_flavour_takes_are_an_error():
    generators = [{"type": "superresolution", "blur_radius": radius} for radius in range(1, 10)]
    run = run_values(conditioning_multidataset_sampling="combined")
    assert "combines 9 references per sample" in error_of(run, [target_set(conditioning=generators)])


def test_random_takes_any_number_of_reference_sets():
    generators = [{"type": "superresolution", "blur_radius": radius} for radius in range(1, 10)]
    assert len(plan(datasets=[target_set(conditioning=generators)]).data.target_sets[0].generators) == 9


def test_one_generator_may_stand_without_a_list():
    (generator,) = plan(datasets=[target_set(conditioning=BLUR)]).data.target_sets[0].generators
    assert generator.generator.blur_radius == 3.0


def test_generator_parameters_may_stand_inside_params():
    block = {"type": "superresolution", "params": {"blur_radius": "3.0"}}
    beside, inside = (plan(datasets=[target_set(conditioning=one)]).data.target_sets[0] for one in (BLUR, block))
    assert beside.generators == inside.generators


def test_a_parameter_beside_type_and_in_params_with_another_value_is_an_error():
    message = error_of(datasets=[target_set(conditioning={**BLUR, "params": {"blur_radius": 4.0}})])
    assert "blur_radius is 3.0 beside type and 4.0 inside params; keep one" in message


def test_an_unknown_generator_gets_the_nearest_name():
    message = error_of(datasets=[target_set(conditioning={"type": "superres"})])
    assert "unknown generator 'superres'; did you mean 'superresolution'?" in message


def test_an_unknown_generator_parameter_gets_the_nearest_name():
    message = error_of(datasets=[target_set(conditioning={"type": "lowres", "blur_radios": 2})])
    expected = "dataset 'edits': conditioning 'lowres': unknown key 'blur_radios'; did you mean 'blur_radius'?"
    assert message == expected


def test_a_generator_used_twice_gets_two_ids():
    generators = plan(datasets=[target_set(conditioning=[BLUR, BLUR])]).data.target_sets[0].generators
    assert [one.id for one in generators] == ["edits/superresolution", "edits/superresolution-2"]


def test_generator_captions_are_a_text_or_a_list():
    blocks = [{**BLUR, "captions": captions} for captions in ("sharpen", ["a", "b"], None, [])]
    generators = plan(datasets=[target_set(conditioning=blocks)]).data.target_sets[0].generators
    assert [one.captions for one in generators] == [("sharpen",), ("a", "b"), None, None]


def test_made_images_go_where_the_generator_says():
    blocks = [BLUR, {**BLUR, "instance_data_dir": "mine"}]
    generators = plan(run_values(cache_dir="c"), [target_set(conditioning=blocks)]).data.target_sets[0].generators
    assert [one.folder for one in generators] == [Path("c/made/edits/superresolution"), Path("mine")]


def test_a_source_without_its_folder_says_what_is_missing():
    message = error_of(datasets=[target_set(instance_data_dir=...)])
    assert message == "dataset 'edits': instance_data_dir is missing (asked for by type 'local')"


def test_an_unknown_caption_strategy_gets_the_nearest_name():
    assert "did you mean 'textfile'?" in error_of(datasets=[target_set(caption_strategy="textfiles")])


def test_a_dataset_leaves_to_the_run_what_it_does_not_say():
    run = run_values(resolution=512, resolution_type="pixel", minimum_image_size=64)
    dataset = plan(run, [target_set()]).data.by_id("edits")
    assert (dataset.rules.resolution, dataset.rules.resolution_type) == (512, "pixel")
    assert dataset.config.minimum_image_size == 64


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"resolution": 1024, "resolution_type": "area"}, "for pixels set resolution_type = pixel_area"),
        ({"resolution": 1, "resolution_type": "pixel_area"}, "for megapixels set resolution_type = area"),
        ({"maximum_image_size": 1536}, "maximum_image_size and target_downsample_size go together"),
        ({"minimum_aspect_ratio": 2, "maximum_aspect_ratio": 1}, "minimum_aspect_ratio 2 is above"),
        ({"crop": True, "crop_aspect": "closest"}, "closest needs crop_aspect_buckets"),
    ],
)
def test_sizes_that_contradict_each_other_are_an_error(changes, part):
    assert part in error_of(datasets=[target_set(**changes)])


def test_values_not_built_yet_name_the_datasets():
    message = error_of(datasets=[target_set(id=name, caption_strategy="webshart") for name in ("edits", "b")])
    assert message == "not supported yet in difftrain 0.1: caption_strategy 'webshart' (datasets edits, b)"


@pytest.mark.parametrize("crop", [True, False])
def test_crops_around_faces_say_which_plugin_point_they_need(crop):
    message = error_of(datasets=[target_set(crop=crop, crop_style="face")])
    assert message.startswith(
        "datasets.json:1: dataset 'edits': crop_style 'face': crops around faces come with a plugin"
    )
    assert "a crop style named 'face' (docs/plugins.md, CropStyle)" in message
    assert "hint: install one, or set crop_style = center" in message


def test_an_unknown_crop_style_gets_the_nearest_and_all_names():
    message = error_of(datasets=[target_set(crop_style="centre")])
    assert message == (
        "dataset 'edits': crop_style: unknown crop style 'centre'; did you mean 'center'? known: center, corner, random"
    )


def test_the_id_is_a_placeholder():
    dataset = plan(datasets=[target_set(cache_dir_vae="vae/{model_flavour}/{id}")]).data.by_id("edits")
    assert dataset.latents_folder == Path("vae/kontext/edits")


def test_a_key_of_a_pairing_on_a_target_set_is_noted():
    (note,) = plan(datasets=[target_set(reference_resolution="same")]).notes
    assert note.startswith("dataset 'edits': reference_resolution: no effect")


def test_two_text_caches_need_one_default():
    texts = [{"id": name, "dataset_type": "text_embeds", "cache_dir": name} for name in ("t1", "t2")]
    assert "text_embeds datasets 't1', 't2'" in error_of(datasets=[*pair(), *texts])


def test_a_text_cache_is_added_by_itself():
    assert plan(run_values(cache_dir="c")).data.text_folder == Path("c/text")


def test_conditioning_data_must_name_a_reference_set():
    datasets = [target_set(conditioning_data="other"), target_set(id="other", instance_data_dir="other")]
    message = error_of(datasets=datasets)
    assert message == (
        "dataset 'edits': conditioning_data names 'other', which is no reference set\n"
        "hint: give 'other' a conditioning_type"
    )


def test_one_reference_set_twice_is_an_error():
    datasets = [target_set(conditioning_data=["refs", "refs"]), reference_set()]
    assert error_of(datasets=datasets) == "dataset 'edits': conditioning_data names 'refs' 2 times"


def test_a_sample_limit_on_a_reference_set_is_an_error():
    message = error_of(datasets=[target_set(conditioning_data="refs"), reference_set(max_num_samples=5)])
    assert message.startswith("dataset 'refs': max_num_samples would never be used: this is a reference set")


def test_a_sample_limit_on_the_target_set_is_none():
    assert plan(datasets=pair(max_num_samples=5)).data.target_sets[0].config.max_num_samples == 5


def test_a_source_that_is_the_target_set_says_what_is_done_anyway():
    datasets = [target_set(conditioning_data="refs"), reference_set(source_dataset_id="edits")]
    assert plan(datasets=datasets).notes == ()


def test_a_source_that_does_not_name_the_reference_set_is_an_error():
    datasets = [
        target_set(conditioning_data="refs"),
        target_set(id="others", instance_data_dir="others"),
        reference_set(source_dataset_id="others"),
    ]
    expected = "dataset 'refs': source_dataset_id names 'others', which does not name this set in its conditioning_data"
    assert error_of(datasets=datasets).startswith(expected)


def test_sampling_options_of_a_reference_set_are_noted():
    datasets = [target_set(conditioning_data="refs"), reference_set(repeats=2)]
    assert plan(datasets=datasets).notes == (
        "dataset 'refs': repeats: no effect on a reference set, only on its target set",
    )


@pytest.mark.parametrize(("key", "value"), [("crop_style", "corner"), ("crop_aspect", "preserve")])
def test_how_to_crop_without_crop_is_noted(key, value):
    assert plan(datasets=[target_set(**{key: value})]).notes == (f"dataset 'edits': {key}: no effect, crop is false",)


def test_how_to_crop_with_crop_is_not_noted():
    assert plan(datasets=[target_set(crop=True, crop_style="corner", crop_aspect="square")]).notes == ()


def test_a_generator_by_its_name_alone_says_how_to_write_the_block():
    message = error_of(datasets=[target_set(conditioning=["superresolution"])])
    assert message == (
        "datasets.json:1: dataset 'edits': conditioning block 1 must be an object, such as "
        '{"type": "superresolution"}, got ["superresolution"]'
    )


def test_a_generator_block_without_type_is_numbered():
    message = error_of(datasets=[target_set(conditioning=[BLUR, {"blur_radius": 1}])])
    assert message == (
        "dataset 'edits': conditioning block 2 has no type\nhint: name a generator, such as "
        '{"type": "superresolution"}'
    )


def test_a_problem_of_a_generator_names_the_whole_dataset_id():
    message = error_of(datasets=[target_set(id="set/edits", conditioning=[{**BLUR, "blur_radius": "much"}])])
    assert message.startswith("dataset 'set/edits': conditioning 'superresolution': blur_radius")


@pytest.mark.parametrize("name", ["..", "a/../../b", "/tmp/a", "a\\b", "./a", "a//b", "a/", "x" * 201, "a\tb", "a\nb"])
def test_an_id_that_is_no_folder_below_the_cache_is_an_error(name):
    message = error_of(datasets=[target_set(id=name)])
    assert message.startswith(f"datasets.json: dataset id {name!r} cannot be used as a cache folder")


def test_more_repeats_than_anybody_waits_for_are_an_error():
    assert "repeats must be at most 100000, got 99999999999999999999" in error_of(
        datasets=[target_set(repeats=99999999999999999999)]
    )


def test_an_id_may_have_slashes_and_dots():
    assert plan(datasets=[target_set(id="a/b.c")]).data.by_id("a/b.c").latents_folder.parts[-2:] == ("a", "b.c")


@pytest.mark.parametrize(
    ("run_type", "own_type", "inherited"),
    [("pixel", "area", None), ("area", "pixel_area", None), ("pixel", "pixel_area", 64.0), ("area", None, 64.0)],
)
def test_the_minimum_of_the_run_is_inherited_in_the_same_unit_only(run_type, own_type, inherited):
    run = run_values(resolution=64 if run_type == "area" else 512, resolution_type=run_type, minimum_image_size=64)
    entry = target_set(resolution=1 if own_type == "area" else 64, resolution_type=own_type or ...)
    planned = plan(run, [entry])
    assert planned.data.by_id("edits").config.minimum_image_size == inherited
    assert any("minimum_image_size" in note for note in planned.notes) == (inherited is None)


@pytest.mark.parametrize("kind", ["pixel", "pixel_area"])
def test_a_resolution_far_beyond_any_image_is_an_error(kind):
    message = error_of(run_values(resolution=1000000, resolution_type=kind), [target_set()])
    assert message == (
        f"dataset 'edits': resolution 1e+06 with resolution_type {kind} is 1e+06 megapixels or more; "
        "at most 100 are possible"
    )


@pytest.mark.parametrize("aspects", [[0, -1], [1.0, 0]])
def test_crop_aspects_must_be_positive(aspects):
    message = error_of(datasets=[target_set(crop=True, crop_aspect="closest", crop_aspect_buckets=aspects)])
    assert message.startswith("datasets.json:1: dataset 'edits': crop_aspect_buckets must be more than 0")


@pytest.mark.parametrize("strategy", ["textfile", "filename"])
def test_prepending_a_prompt_that_is_not_there_is_an_error(strategy):
    message = error_of(datasets=[target_set(caption_strategy=strategy, prepend_instance_prompt=True)])
    assert message == (
        "dataset 'edits': prepend_instance_prompt = true needs an instance_prompt "
        f"(asked for by caption_strategy {strategy!r})"
    )


def test_hints_name_the_place_of_every_set_and_generator():
    blocks = [{**BLUR, "instance_data_dir": "mine"}, {**BLUR, "generate": "ondemand"}]
    data = plan(datasets=[target_set(conditioning=blocks)]).data
    stored, on_demand = data.by_id("edits").generators
    assert data.place_of(stored.id) == "folder mine"
    assert data.place_of(on_demand.id) == data.place_of("edits") == f"folder {target_set()['instance_data_dir']}"


def test_every_folder_of_every_entry_is_known_as_written_even_of_those_that_this_run_does_not_use():
    made = {**BLUR, "params": {"instance_data_dir": "made/kept-out"}}
    entries = [
        target_set(conditioning=[{**BLUR, "instance_data_dir": "made/edits"}]),
        target_set(id="shown", dataset_type="eval", instance_data_dir="shown"),
        target_set(id="kept-out", dataset_type="eval", instance_data_dir="e", conditioning=[made], cache_dir_vae="v"),
        {"id": "text", "dataset_type": "text_embeds", "cache_dir": "t"},
    ]
    written = plan(run_values(output_dir="o", cache_dir="c", eval_dataset_id="shown"), datasets=entries)
    folders = {str(folder) for folder in written.data.written_folders.values()}
    assert folders == {"o", "c", "t", "v", "made/edits", "made/kept-out", "c/vae/edits", "c/vae/shown"}
