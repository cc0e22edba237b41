"""Options of datasets change what is trained on: captions, references, visits, crops."""

from collections import Counter

import pytest
import torch
from PIL import Image
from wiring import EDITS, DataTrials

from conftest import EditPairs, new_image
from difftrain_flux.packing import pack


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train an epoch: eight edits of 96x64 pixels with two captions each, two sets of references."""
    folder = tmp_path_factory.mktemp("data")
    pairs = EditPairs(folder)
    pairs(count=8, reference_sets=2, edit_sizes=[(96, 64)])
    for caption in (folder / "edits").glob("*.txt"):
        caption.write_text(f"edit {caption.stem}\nchange {caption.stem}\n")
    flags = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True)) | {"--num_train_epochs": 1}
    return DataTrials(folder, tuple(part for pair in flags.items() for part in pair))


def reference_sets(*names, **fields):
    entry = {"resolution": 64, "conditioning_type": "reference_strict", **fields}
    return [{"id": name, "instance_data_dir": name, **entry} for name in names]


# captions


def embeddings(run):
    """Return the embedding that the model got for each caption."""
    return {
        caption: embedding
        for fed in run.fed
        for caption, embedding in zip(fed.captions, fed.input.prompt_embeds, strict=True)
    }


def test_each_visit_draws_one_of_the_lines_and_every_caption_has_its_own_embedding(train):
    run = train.with_edits({"num_train_epochs": 4})
    stems = {f"{number:04}" for number in range(8)}
    assert set(run.captions) <= {f"{verb} {stem}" for verb in ("edit", "change") for stem in stems}
    assert {caption.split()[0] for caption in run.captions} == {"edit", "change"}
    assert all(key == f"edits/{caption[-4:]}" for key, caption in zip(run.keys, run.captions, strict=True))
    fed = embeddings(run)
    assert len({embedding.sum().item() for embedding in fed.values()}) == len(fed)


def test_caption_dropout_feeds_the_empty_caption(train):
    everything = train.with_edits({"caption_dropout_probability": 1})
    assert set(everything.captions) == {""}
    half = train.with_edits({"caption_dropout_probability": 0.5, "num_train_epochs": 4})
    assert 8 <= half.captions.count("") <= 24
    torch.testing.assert_close(embeddings(half)[""], embeddings(everything)[""])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"caption_strategy": "instanceprompt", "instance_prompt": "a cat"}, {"a cat"}),
        ({"only_instance_prompt": True, "instance_prompt": "a cat"}, {"a cat"}),
        ({"caption_strategy": "filename"}, {f"{number:04}" for number in range(8)}),
        ({"caption_strategy": None}, {""}),
    ],
)
def test_caption_strategy_is_where_captions_come_from(train, fields, expected):
    assert set(train.with_edits(**fields).captions) == expected


def test_the_instance_prompt_stands_before_every_caption(train):
    run = train.with_edits(instance_prompt="in the style of x", prepend_instance_prompt=True)
    assert all(
        caption.startswith(("in the style of x edit 0", "in the style of x change 0")) for caption in run.captions
    )


def test_the_runs_caption_strategy_is_for_datasets_that_name_none(train):
    assert set(train.with_edits({"caption_strategy": "filename"}).captions) == {f"{number:04}" for number in range(8)}


# which samples, how often


def test_repeats_show_a_sample_so_many_times_more(train):
    assert set(Counter(train.with_edits().keys).values()) == {1}
    assert set(Counter(train.with_edits(repeats=2).keys).values()) == {3}


def test_probability_leaves_out_its_share_of_visits_and_other_ones_each_epoch(train):
    run = train.with_edits({"num_train_epochs": 4}, probability=0.5)
    epochs = [[key for key, result in zip(run.keys, run.results, strict=True) if result.epoch == n] for n in range(4)]
    assert 8 <= len(run.keys) <= 24
    assert all(max(Counter(keys).values()) == 1 for keys in epochs)
    assert len({tuple(sorted(keys)) for keys in epochs}) > 1


def test_max_num_samples_takes_the_same_few_in_every_epoch(train):
    shown = Counter(train.with_edits({"num_train_epochs": 2}, max_num_samples=3).keys)
    assert len(shown) == 3
    assert set(shown.values()) == {2}


def test_disabled_and_held_out_sets_are_not_trained_on(train):
    others = [{**EDITS, "id": "off", "disabled": True}, {**EDITS, "id": "marked", "dataset_type": "eval"}]
    run = train.with_datasets(EDITS, *others)
    assert {key.split("/")[0] for key in run.keys} == {"edits"}
    named = train.with_datasets(EDITS, {**EDITS, "id": "named"}, eval_dataset_id="named")
    assert {key.split("/")[0] for key in named.keys} == {"edits"}


def test_size_and_aspect_limits_leave_images_out(train):
    for index, size in enumerate([(64, 64), (128, 64), (32, 32), (64, 160)]):
        new_image(train.folder / "mixed" / f"{index}.png", size, seed=index)
    mixed = {"instance_data_dir": "mixed", "caption_strategy": None}
    limits = {"minimum_image_size": 64, "minimum_aspect_ratio": 0.5, "maximum_aspect_ratio": 1.5}
    shown = {key: set(train.with_edits(**mixed, **{key: limit}).keys) for key, limit in limits.items()}
    assert shown == {
        "minimum_image_size": {"edits/0", "edits/1", "edits/3"},
        "minimum_aspect_ratio": {"edits/0", "edits/1", "edits/2"},
        "maximum_aspect_ratio": {"edits/0", "edits/2", "edits/3"},
    }
    of_run = train.with_edits({"minimum_image_size": 64}, **mixed)
    assert set(of_run.keys) == shown["minimum_image_size"]


def test_a_familys_batch_key_keeps_samples_apart(train, monkeypatch):
    from difftrain_flux.family import FluxFamily

    together = train.with_edits({"train_batch_size": 4})
    assert [len(fed.visits) for fed in together.fed] == [4, 4]
    monkeypatch.setattr(FluxFamily, "batch_key", lambda family, sample: sample.target.record.key[-1] in "01")
    apart = train.with_edits({"train_batch_size": 4, "output_dir": "apart"})
    assert sorted(len(fed.visits) for fed in apart.fed) == [2, 2, 4]
    assert all(len({key[-1] in "01" for key in fed.batch.keys}) == 1 for fed in apart.fed)


# references


def test_the_model_is_fed_the_reference_of_its_own_edit_behind_the_target(train):
    run = train.with_datasets({**EDITS, "conditioning_data": "references"}, *reference_sets("references"))
    for fed in run.fed:
        (visit,) = fed.visits
        assert visit.references[0].record.key == visit.sample.target.record.key
        (latents,) = fed.batch.references
        torch.testing.assert_close(fed.input.tokens[:, fed.input.target_tokens :], pack(latents))
        assert fed.input.ids[fed.input.target_tokens :, 0].unique().tolist() == [1]
    assert len({fed.batch.references[0].sum().item() for fed in run.fed}) == 8


def test_reference_dropout_trains_without_the_reference(train):
    datasets = [{**EDITS, "conditioning_data": "references"}, *reference_sets("references")]
    everything = train.with_datasets(*datasets, reference_dropout_probability=1)
    assert {fed.reference_tokens for fed in everything.fed} == {0}
    half = train.with_datasets(*datasets, reference_dropout_probability=0.5, num_train_epochs=2)
    assert {fed.reference_tokens > 0 for fed in half.fed} == {True, False}


def test_two_reference_sets_are_drawn_from_or_shown_in_their_order(train):
    names = ["references-2", "references"]
    datasets = [{**EDITS, "conditioning_data": names}, *reference_sets("references", "references-2")]
    drawn = train.with_datasets(*datasets, num_train_epochs=2)
    shown = [tuple(image.record.dataset_id for image in fed.visits[0].references) for fed in drawn.fed]
    assert set(shown) == {("references",), ("references-2",)}
    combined = train.with_datasets(*datasets, conditioning_multidataset_sampling="combined")
    for fed in combined.fed:
        assert [image.record.dataset_id for image in fed.visits[0].references] == names
        expected = torch.cat([pack(latents) for latents in fed.batch.references], dim=1)
        torch.testing.assert_close(fed.input.tokens[:, fed.input.target_tokens :], expected)
        assert not torch.equal(*fed.batch.references)


@pytest.mark.parametrize(("rule", "numbers"), [("offset", [0, 1]), ("index", [0, 1, 2])])
def test_reference_ids_say_how_references_are_distinguished(train, rule, numbers):
    datasets = [{**EDITS, "conditioning_data": ["references", "references-2"]}]
    datasets += reference_sets("references", "references-2")
    run = train.with_datasets(*datasets, conditioning_multidataset_sampling="combined", reference_ids=rule)
    ids = run.fed[0].input.ids
    assert ids[:, 0].unique().tolist() == numbers
    assert len(ids.unique(dim=0)) == len(ids)


def test_a_generators_images_and_captions_are_trained_on(train):
    blur = {"type": "superresolution", "captions": ["sharpen", "deblur"]}
    jpeg = {"type": "jpeg_artifacts", "quality": 5, "generate": "ondemand", "captions": "repair"}
    run = train.with_edits({"num_train_epochs": 3}, conditioning=[blur, jpeg])
    by_caption = {}
    for fed in run.fed:
        by_caption.setdefault(fed.captions[0], set()).add(fed.visits[0].references[0].record.dataset_id)
        assert fed.reference_tokens == fed.input.target_tokens
    assert by_caption == {
        "sharpen": {"edits/superresolution"}, "deblur": {"edits/superresolution"}, "repair": {"edits/jpeg_artifacts"},
    }  # fmt: skip


def test_a_reference_sets_own_captions_are_drawn_with_it(train):
    datasets = [{**EDITS, "conditioning_data": ["references", "references-2"]}, *reference_sets("references")]
    datasets += reference_sets("references-2", caption_strategy="instanceprompt", instance_prompt="from the second")
    for fed in train.with_datasets(*datasets, num_train_epochs=2).fed:
        from_second = fed.visits[0].references[0].record.dataset_id == "references-2"
        assert (fed.captions == ["from the second"]) == from_second


def test_on_missing_skip_trains_on_the_other_pairs(train):
    few = train.folder / "few"
    few.mkdir()
    for number in range(3):
        Image.open(train.folder / "references" / f"{number:04}.png").save(few / f"{number:04}.png")
    run = train.with_datasets({**EDITS, "conditioning_data": "few", "on_missing": "skip"}, *reference_sets("few"))
    assert sorted(run.keys) == ["edits/0000", "edits/0001", "edits/0002"]
    assert "note: dataset 'edits': 5 of 8 images have no reference in 'few': " in run.ended.err


def test_a_loose_reference_keeps_its_own_size_or_follows_as_it_says(train):
    for number in range(8):
        new_image(train.folder / "wide" / f"{number:04}.png", (128, 64), seed=number)
    edits = {**EDITS, "conditioning_data": "wide"}
    sizes = {}
    for rule in ("own", "same"):
        loose = {"conditioning_type": "reference_loose", "reference_resolution": rule, "resolution": 48}
        run = train.with_datasets(edits, *reference_sets("wide", **loose), max_train_steps=1, num_train_epochs=0)
        sizes[rule] = tuple(run.fed[0].batch.references[0].shape[-2:])
    target = run.fed[0].batch.latents.shape[-2:]
    assert sizes == {"own": (4, 8), "same": tuple(target)}


# images


def shapes(run):
    return {tuple(fed.batch.latents.shape[-2:]) for fed in run.fed}


@pytest.mark.parametrize(
    ("options", "fields", "size"),
    [
        ({}, {}, (6, 10)),  # an area of 64x64 in the aspect 3:2, in multiples of 16 pixels
        ({}, {"resolution": 48}, (4, 8)),
        ({"resolution": 48}, {"resolution": None}, (4, 8)),
        ({}, {"resolution_type": "pixel"}, (8, 12)),
        ({"resolution_type": "pixel"}, {}, (8, 12)),
        ({}, {"resolution": 0.001024, "resolution_type": "area"}, (4, 4)),
        ({"aspect_bucket_alignment": 32}, {}, (8, 8)),
        ({}, {"crop": True}, (8, 8)),
        ({}, {"crop": True, "crop_aspect": "preserve"}, (6, 10)),
        ({}, {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [0.25, 1.0]}, (8, 8)),
    ],
)
def test_size_options_give_the_size_that_is_trained(train, options, fields, size):
    assert shapes(train.with_edits(options, **fields)) == {size}
