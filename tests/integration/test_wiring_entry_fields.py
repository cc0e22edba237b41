"""Options of datasets change what is read: captions, crops, text caches."""

from collections import Counter

import pytest
from wiring import EDITS, DataTrials

from conftest import EditPairs, new_image


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train an epoch of eight edits without references."""
    folder = tmp_path_factory.mktemp("fields")
    pairs = EditPairs(folder)
    pairs(count=8, references=None, edit_sizes=[(160, 96)])
    for caption in (folder / "edits").glob("*.txt"):
        caption.write_text(f"edit {caption.stem}, red, green, blue\nsecond line")
    flags = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True)) | {"--num_train_epochs": 1}
    return DataTrials(folder, tuple(part for pair in flags.items() for part in pair))


def test_a_file_of_several_lines_may_be_one_caption(train):
    run = train.with_edits({"num_train_epochs": 2}, disable_multiline_split=True)
    assert all(caption.endswith(", blue\nsecond line") for caption in run.captions)


def test_shuffled_captions_are_trained_with(train):
    asked = {"count": 4, "position_start": 1, "include_original": False}
    run = train.with_edits({"num_train_epochs": 3}, caption_shuffle=asked, disable_multiline_split=True)
    assert all(caption.startswith("edit 0") for caption in run.captions)
    assert len({caption.split(", ", 1)[1] for caption in run.captions}) > 2


def test_filters_change_captions(train):
    run = train.with_edits(caption_filter_list=["s/edit/change/", ", red"], disable_multiline_split=True)
    assert all(caption.startswith("change 0") and "red" not in caption for caption in run.captions)


def test_a_set_keeps_its_text_in_the_cache_that_it_names(train):
    texts = [
        {"id": "usual", "dataset_type": "text_embeds", "cache_dir": "usual-texts", "default": True},
        {"id": "own", "dataset_type": "text_embeds", "cache_dir": "own-texts"},
    ]
    options = {"caption_strategy": "filename", "caption_dropout_probability": 0.4, "num_train_epochs": 2}
    run = train.with_datasets({**EDITS, "text_embeds": "own"}, *texts, **options)
    count = {name: len(list((train.folder / f"{name}-texts").rglob("*.safetensors"))) for name in ("usual", "own")}
    assert count == {"own": 9, "usual": 1}  # the empty text is in both
    assert "encode captions 10:" in run.ended.err  # all of them before the first step
    usual = train.with_datasets(EDITS, **options)
    assert [fed.input.prompt_embeds.sum().item() for fed in run.fed] == [
        fed.input.prompt_embeds.sum().item() for fed in usual.fed
    ]


def test_images_that_would_be_enlarged_too_much_are_left_out_and_counted(train):
    for index, size in enumerate([(64, 64), (40, 40), (60, 60)]):
        new_image(train.folder / "small" / f"{index}.png", size, seed=index)
    small = {"instance_data_dir": "small", "caption_strategy": None}
    assert len(train.with_edits(**small).keys) == 3
    assert set(train.with_edits(**small, max_upscale_threshold=0.2).keys) == {"edits/0", "edits/2"}
    assert set(train.with_edits(**small, max_upscale_threshold=0).keys) == {"edits/0"}


def test_a_random_aspect_is_drawn_for_each_image(train):
    fields = {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [0.5, 1, 2]}
    run = train.with_edits(**fields)
    found = Counter(fed.batch.latents.shape[-2:] for fed in run.fed)
    assert len(found) >= 2
    again = train.with_edits({"num_train_epochs": 2}, **fields)
    for key, shapes in shapes_of(again).items():
        assert len(shapes) == 1, f"{key} has a new crop each epoch, which nobody asked for"


def shapes_of(run):
    """Return the shapes of each sample's latents."""
    shapes = {}
    for fed in run.fed:
        shapes.setdefault(fed.batch.keys[0], set()).add(fed.batch.latents.shape[-2:])
    return shapes


NEW_CROPS = {"crop": True, "crop_style": "random", "vae_cache_clear_each_epoch": True}


def cached(run, name):
    return {path.name for path in (run.folder / name).rglob("*.safetensors")}


def test_each_epoch_has_new_crops_and_the_cache_forgets_the_old_ones(train):
    run = train.with_edits({"num_train_epochs": 3, "vae_cache_sample": "mean"}, **NEW_CROPS, cache_dir_vae="new-crops")
    latents = {}
    for fed in run.fed:
        latents.setdefault(fed.batch.keys[0], set()).add(fed.batch.latents.sum().item())
    assert sum(map(len, latents.values())) > 16  # of 24; some crops of so small images are the same
    assert len(cached(run, "new-crops")) == 8
    fixed = {**NEW_CROPS, "vae_cache_clear_each_epoch": False}
    kept = train.with_edits({"num_train_epochs": 3, "vae_cache_sample": "mean"}, **fixed)
    assert len({fed.batch.latents.sum().item() for fed in kept.fed}) == 8


def test_new_crops_resume_exactly(train):
    options = {"num_train_epochs": None, "max_train_steps": 22}
    fields = {**NEW_CROPS, "crop_aspect": "random", "crop_aspect_buckets": [0.5, 1, 2]}
    whole = train.with_edits(options, **fields)
    first = train.with_edits({**options, "max_train_steps": 13}, **fields)
    resumed = train.with_edits({**options, "resume_from_checkpoint": first.output / "checkpoint-13"}, **fields)
    shown = [fed.batch.latents for fed in [*first.fed, *resumed.fed]]
    assert len(shown) == len(whole.fed)
    assert all(one.equal(fed.batch.latents) for one, fed in zip(shown, whole.fed, strict=True))
    assert "encode images" not in resumed.ended.err  # the crops of the second epoch are there


def test_references_follow_the_new_crops_of_their_targets(train):
    references = {
        "id": "refs", "instance_data_dir": "edits", "conditioning_type": "reference_strict", "resolution": 64,
        "caption_strategy": None,
    }  # fmt: skip
    edits = {**EDITS, **NEW_CROPS, "conditioning_data": "refs", "allow_identical_references": True}
    run = train.with_datasets(edits, references, num_train_epochs=3, vae_cache_sample="mean")
    for fed in run.fed:
        # the same pictures: their latents are equal whatever the crop
        assert fed.batch.latents.equal(fed.batch.references[0])
    assert len({fed.batch.latents.sum().item() for fed in run.fed}) > 16
