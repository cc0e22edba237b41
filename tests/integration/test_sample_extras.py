"""Losses that ask for tensors of each sample, through the whole command."""

import json
import shutil
import sys

import pytest
import torch
from asking_plugin import SOURCE
from long_runs import ADAPTER, changed, losses
from PIL import Image
from wiring import EDITS, DataTrials

from conftest import EditPairs, read_metrics, run_in
from difftrain.steps.losses import MeanSquaredError

WEIGHTS = {"edits": 2.5, "others": 0.5}
VALIDATION = {
    "validation_steps": 1, "num_eval_images": 0, "eval_dataset_id": "edits", "validation_on_startup": "true",
}  # fmt: skip


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train one step on both of two target sets, three samples each, in one batch."""
    folder = tmp_path_factory.mktemp("extras")
    pairs = EditPairs(folder)
    pairs(count=3, references=None)
    shutil.copytree(folder / "edits", folder / "others")
    for index in range(3):
        Image.new("L", (64, 64)).save(folder / "others" / f"{index:04}.png")  # otherwise one image is in two sets
    (folder / "asking.py").write_text(SOURCE)
    given = {"max_train_steps": 1, "train_batch_size": 6, "plugins": "./asking.py", "loss_type": "weighted"}
    return DataTrials(folder, changed(pairs.kontext, **given))


def entries(**weights):
    """Both target sets, with these weights."""
    sets = [{**EDITS, "id": name, "instance_data_dir": name} for name in ("edits", "others")]
    return [{**entry, "loss_weight": weights[entry["id"]]} if entry["id"] in weights else entry for entry in sets]


def errors(fed):
    """Plain mean squared error of each sample, by key."""
    return dict(zip(fed.batch.keys, MeanSquaredError().compute(fed.prediction, fed.noisy, fed.batch), strict=True))


def test_weights_of_datasets_change_the_loss_as_computed_by_hand(train):
    run = train.with_datasets(*entries(**WEIGHTS), optimizer="plain-sgd", plugins="./asking.py,./plain_sgd.py")
    (fed,) = run.fed
    by_hand = sum(WEIGHTS[key.partition("/")[0]] * error.item() for key, error in errors(fed).items()) / 6
    assert run.results[0].loss == pytest.approx(by_hand, rel=1e-6)
    assert len(fed.batch.keys) == 6
    assert fed.batch.extras["weight"].dtype == torch.float32
    # a sample with twice the weight moves the weights twice as far
    twice = {name: 2 * weight for name, weight in WEIGHTS.items()}
    heavy = train.with_datasets(
        *entries(**twice), optimizer="plain-sgd", plugins="./asking.py,./plain_sgd.py", max_grad_norm=0
    )
    light = train.with_datasets(
        *entries(**WEIGHTS), optimizer="plain-sgd", plugins="./asking.py,./plain_sgd.py", max_grad_norm=0
    )
    assert heavy.moved[0] == pytest.approx(2 * light.moved[0], rel=1e-4)


def test_a_dataset_that_says_nothing_has_the_default(train):
    plain = train.with_datasets(*entries(), loss_type="mse")
    weighted = train.with_datasets(*entries())
    assert weighted.results[0].loss == pytest.approx(plain.results[0].loss, rel=1e-6)
    assert plain.fed[0].batch.extras == {}


def test_a_mask_of_each_sample_reaches_the_loss_cut_as_its_image(train):
    (train.folder / "masks").mkdir()
    for index in range(3):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (8 * index, 0, 64, 32))
        mask.save(train.folder / "masks" / f"{index:04}.png")
    run = train.with_edits({"loss_type": "masked"}, mask_folder="masks")
    (fed,) = run.fed
    by_hand = []
    for key, prediction, target in zip(fed.batch.keys, fed.prediction, fed.noisy.target, strict=True):
        left = int(key[-1])  # in cells of 8 pixels
        part = (slice(None), slice(0, 4), slice(left, 8))
        by_hand.append((prediction[part] - target[part]).square().mean().item())
    assert run.results[0].loss == pytest.approx(sum(by_hand) / 3, rel=1e-5)


def test_the_loss_on_fixed_samples_has_the_weights_of_their_dataset(train):
    runs = [train.with_datasets(*entries(edits=weight), **VALIDATION) for weight in (1.0, 3.0)]
    (first, *_), (heavy, *_) = ([line for line in read_metrics(run.output) if "fixed_loss" in line] for run in runs)
    assert heavy["fixed_loss"] == pytest.approx(3 * first["fixed_loss"], rel=1e-5)
    assert heavy["fixed_loss_on"] != first["fixed_loss_on"]


def arguments_of(train, name, *sets):
    """Return arguments of a run over these sets, with batches of one."""
    path = train.folder / f"{name}.json"
    path.write_text(json.dumps(sets))
    return changed(train.arguments, data_backend_config=path.name, output_dir=name, train_batch_size=1)


def test_a_weighted_run_resumes_bit_by_bit(train):
    arguments = arguments_of(train, "whole", *entries(**WEIGHTS))
    whole = run_in(train.folder, *changed(arguments, max_train_steps=6))
    assert whole.status == 0, whole.err
    for steps in (3, 6):
        part = run_in(train.folder, *changed(arguments, max_train_steps=steps, output_dir="parts"))
        assert part.status == 0, part.err
    assert (train.folder / "parts" / ADAPTER).read_bytes() == (train.folder / "whole" / ADAPTER).read_bytes()
    assert losses(train.folder / "parts") == losses(train.folder / "whole")


def test_a_weight_that_changed_since_the_checkpoint_is_reported(train):
    run_in(train.folder, *arguments_of(train, "told", *entries(**WEIGHTS)))
    ended = run_in(
        train.folder, *changed(arguments_of(train, "told", *entries(edits=1, others=0.5)), max_train_steps=2)
    )
    assert ended.status == 0, ended.err
    assert (
        "'edits' had 3 samples, repeats 0, probability 1, loss_weight 2.5, "
        "has 3 samples, repeats 0, probability 1, loss_weight 1.0" in ended.err
    )
    assert "'others' had" not in ended.err


OWN_FAMILY = {"model_family": "asking", "model_flavour": "base", "pretrained_model_name_or_path": "tiny-test"}


def of_the_family(arguments, **options):
    """Return arguments of a run of the plugin's own family."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    rest = {key: value for key, value in given.items() if key not in ("--model", "--flavour")}
    return changed(tuple(part for pair in rest.items() for part in pair), **OWN_FAMILY, **options)


def test_a_family_asks_samples_too(train):
    sets = [{**entry, "level": number} for number, entry in enumerate(entries(**WEIGHTS), 4)]
    arguments = arguments_of(train, "asking", *sets)
    ended = run_in(train.folder, *of_the_family(arguments, train_batch_size=6))
    assert ended.status == 0, ended.err
    levels = sys.modules["difftrain_file_asking"].levels
    assert sorted(levels[0]) == [4, 4, 4, 5, 5, 5]


def test_a_family_and_a_loss_that_give_one_name_are_reported_before_anything_is_encoded(train):
    arguments = arguments_of(train, "clash", {**EDITS, "level": 1})
    ended = run_in(train.folder, *of_the_family(arguments, loss_type="clashing", cache_dir="cache-of-clash"))
    assert ended.status == 2
    assert "model family 'asking' and loss 'clashing' both give 'level'" in ended.err
    assert "encode" not in ended.err


# reported before anything is read


@pytest.mark.parametrize(
    ("entry", "options", "says"),
    [
        ({"loss_wieght": 2}, {}, "unknown key 'loss_wieght'; did you mean 'loss_weight'?"),
        ({"loss_weight": -1}, {}, "loss_weight"),
        ({}, {"loss_type": "masked"}, "mask_folder is missing (asked for by loss_type 'masked')"),
    ],
)
def test_a_wrong_key_of_a_loss_is_an_error_of_the_entry(train, entry, options, says):
    arguments = arguments_of(train, "wrong", {**EDITS, **entry})
    ended = run_in(train.folder, "check", *changed(arguments, **options))
    assert ended.status == 2
    assert says in ended.err
    assert "dataset 'edits'" in ended.err


def test_a_key_without_its_loss_is_noted(train):
    arguments = arguments_of(train, "unused", {**EDITS, "loss_weight": 2})
    ended = run_in(train.folder, "check", *changed(arguments, loss_type="mse"))
    owners = "loss 'weighted' or loss 'clashing'"
    said = f"dataset 'edits': loss_weight: no effect, it is an option of {owners}, which this run does not use"
    assert said in ended.out


def test_a_key_of_the_loss_on_a_reference_set_is_noted(train):
    references = {"id": "others", "instance_data_dir": "others", "resolution": 64, "loss_weight": 2}
    references["conditioning_type"] = "reference_strict"
    arguments = arguments_of(train, "misplaced", {**EDITS, "conditioning_data": "others"}, references)
    ended = run_in(train.folder, "check", *arguments)
    said = "dataset 'others': loss_weight: no effect on a reference set; it belongs on the target set"
    assert said in ended.out


def test_a_mask_that_is_missing_is_reported_before_anything_is_encoded(train):
    arguments = arguments_of(train, "missing", {**EDITS, "mask_folder": "nowhere"})
    given = {"loss_type": "masked", "cache_dir": "cache-of-missing"}
    ended = run_in(train.folder, *changed(arguments, **given))
    assert ended.status == 2
    assert "loss 'masked': extras() failed on edits/0000: FileNotFoundError" in ended.err
    assert "encode" not in ended.err
