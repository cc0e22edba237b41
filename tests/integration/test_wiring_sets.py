"""Options of datasets say when and how their samples are trained on: batch size, schedule, regularisation, noise."""

import json
from collections import Counter

import pytest
import torch
from long_runs import changed
from wiring import EDITS, DataTrials

from conftest import EditPairs, run_in
from difftrain.steps.recorded_steps import RecordedSteps
from difftrain.training import session
from recorder import Recorder


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train on eight edits in one set and on four of another folder in a second one."""
    folder = tmp_path_factory.mktemp("sets")
    pairs = EditPairs(folder)
    pairs(count=8, references=None)
    for number in range(4):
        for ending in ("png", "txt"):
            (folder / "more").mkdir(exist_ok=True)
            content = (folder / "edits" / f"{number:04}.{ending}").read_bytes()
            (folder / "more" / f"more-{number}.{ending}").write_bytes(content)
    flags = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True)) | {"--num_train_epochs": 1}
    return DataTrials(folder, tuple(part for pair in flags.items() for part in pair))


MORE = {**EDITS, "id": "more", "instance_data_dir": "more"}


def sets_of(run):
    """Return the datasets of each batch."""
    return [{key.split("/")[0] for key in fed.batch.keys} for fed in run.fed]


def test_a_set_has_its_own_batch_size_and_batches_are_said_to_be_full(train):
    run = train.with_datasets(EDITS, {**MORE, "train_batch_size": 4}, train_batch_size=2)
    assert sorted(len(fed.batch.keys) for fed in run.fed) == [2, 2, 2, 2, 4]
    assert "5 batches an epoch, 100 % full" in run.ended.err
    half = train.with_datasets({**EDITS, "max_num_samples": 3}, train_batch_size=2)
    assert "2 batches an epoch, 75 % full" in half.ended.err


def test_sets_begin_and_end_with_steps_and_the_user_is_told(train):
    ending, beginning = {**EDITS, "end_step": 3}, {**MORE, "start_step": 4}
    run = train.with_datasets(ending, beginning, max_train_steps=8, num_train_epochs=None)
    assert sets_of(run) == [{"edits"}] * 3 + [{"more"}] * 5
    assert "datasets take part: 'edits' from step 1 to 3; 'more' from step 4 on" in run.ended.err
    assert "from step 4 on (epoch 1): 'more' begins; 'edits' ends" in run.ended.err


def test_sets_begin_and_end_with_epochs(train):
    run = train.with_datasets({**EDITS, "end_epoch": 1}, {**MORE, "start_epoch": 2}, num_train_epochs=2)
    assert sets_of(run) == [{"edits"}] * 8 + [{"more"}] * 4


def test_a_schedule_resumes_exactly(train):
    edits, more = {**EDITS, "train_batch_size": 2, "repeats": 1}, {**MORE, "start_step": 4, "end_step": 11}
    guard = {**MORE, "id": "guard", "is_regularisation_data": True, "train_batch_size": 3, "start_step": 2}
    options = {"num_train_epochs": None, "max_train_steps": 14, "gradient_accumulation_steps": 2, "train_batch_size": 1}
    whole = train.with_datasets(edits, more, guard, **options, checkpoint_step_interval=1, checkpoints_total_limit=14)
    for stop in (3, 6, 10, 12):
        checkpoint = whole.output / f"checkpoint-{stop}"
        resumed = train.with_datasets(edits, more, guard, **options, resume_from_checkpoint=checkpoint)
        assert len(resumed.results) == 14 - stop
        assert resumed.keys == [key for fed in whole.fed[2 * stop :] for key in fed.batch.keys]
        torch.testing.assert_close(resumed.weights[-1], whole.weights[-1], rtol=0, atol=0)


def test_an_epoch_does_not_wait_for_a_set_that_ignores_epochs(train):
    run = train.with_datasets(
        {**EDITS, "max_num_samples": 2}, {**MORE, "ignore_epochs": True, "repeats": 9}, data_backend_sampling="uniform"
    )
    count = Counter(key.split("/")[0] for key in run.keys)
    assert count["edits"] == 2
    assert count["more"] < 8


def test_uniform_sampling_brings_a_small_set_early(train):
    small = {**MORE, "max_num_samples": 2}
    large = {**EDITS, "repeats": 3}
    places = {}
    for sampling in ("uniform", "auto-weighting"):
        order = [key.split("/")[0] for key in train.with_datasets(large, small, data_backend_sampling=sampling).keys]
        assert Counter(order) == {"edits": 32, "more": 2}
        places[sampling] = max(place for place, name in enumerate(order) if name == "more")
    assert places["uniform"] < 8 < places["auto-weighting"]


def test_samples_of_a_regularisation_set_are_trained_towards_the_model_without_its_adapter(train):
    guard = {**MORE, "is_regularisation_data": True, "end_step": 2}
    run = train.with_datasets(guard, {**EDITS, "start_step": 3}, max_train_steps=4, num_train_epochs=None)
    # a new adapter changes nothing, so there is nothing to bring back
    assert [result.loss for result in run.results[:2]] == [0, 0]
    assert max(run.moved[:2]) < 0.1 * run.moved[2]  # only the weights decay
    assert run.results[2].loss > 0.1


def test_a_regularisation_set_holds_a_trained_adapter_back(train):
    guard = {**MORE, "is_regularisation_data": True, "start_step": 5}
    run = train.with_datasets(
        {**EDITS, "end_step": 4}, guard, max_train_steps=6, num_train_epochs=None, learning_rate=1e-2
    )
    usual = train.with_datasets(
        {**EDITS, "end_step": 4}, {**MORE, "start_step": 5}, max_train_steps=6, num_train_epochs=None,
        learning_rate=1e-2,
    )  # fmt: skip
    # the distance to the model without its adapter is small, but no longer nothing; that to the noise is large
    assert 0 < run.results[4].loss < 0.2 * usual.results[4].loss
    assert [fed.batch.regularises for fed in run.fed] == [False] * 4 + [True] * 2


def test_timestep_sampling_offset_moves_the_noise_levels_of_its_set_only(train):
    options = {"flow_schedule_shift": 1, "seed": 5}
    usual = train.with_datasets(EDITS, MORE, **options)
    moved = train.with_datasets(EDITS, {**MORE, "timestep_sampling_offset": 1.5}, **options)
    assert moved.keys == usual.keys
    assert {key.split("/")[0] for key in moved.keys} == {"edits", "more"}
    for before, after in zip(usual.fed, moved.fed, strict=True):
        offset = 1.5 if after.batch.keys[0].startswith("more/") else 0.0
        expected = torch.sigmoid(torch.logit(before.input.sigma) + offset)
        torch.testing.assert_close(after.input.sigma, expected, rtol=1e-5, atol=1e-6)


def check(train, *entries, **options):
    """Return the errors of ``difftrain check`` with these datasets."""
    (train.folder / "checked.json").write_text(json.dumps(entries))
    ended = run_in(train.folder, "check", *changed(train.arguments, data_backend_config="checked.json", **options))
    return ended.status, ended.err + ended.out


def test_steps_without_a_set_are_an_error_before_anything_is_loaded(train):
    # when the first epoch ends depends on the data
    entries = {**EDITS, "end_epoch": 1}, {**MORE, "start_step": 20}
    status, text = check(train, *entries, num_train_epochs=None, max_train_steps=30)
    assert status != 0
    assert "no dataset takes part after step 8 (epoch 1), but max_train_steps is 30" in text
    assert "'edits' from epoch 1 to 1; 'more' from step 20 on" in text


def test_a_schedule_that_fits_is_no_error(train):
    status, text = check(
        train, {**EDITS, "end_epoch": 1}, {**MORE, "start_step": 9}, num_train_epochs=None, max_train_steps=30
    )
    assert status == 0, text


def test_slider_strength_is_the_adapters_strength_for_the_sets_samples(train):
    options = {"max_train_steps": 5, "num_train_epochs": None, "learning_rate": 1e-2, "lora_rank": 2}
    seen = {}
    for strength in (1, -1, 0.5):
        slider = {**MORE, "start_step": 5, "slider_strength": strength}
        run = train.with_datasets({**EDITS, "end_step": 4}, slider, **options)
        seen[strength] = run
        assert run.fed[-1].batch.strength == strength
    usual, opposite, half = (seen[strength] for strength in (1, -1, 0.5))
    assert torch.equal(usual.weights[4], opposite.weights[4])
    predictions = [run.fed[-1].prediction for run in (usual, opposite, half)]
    # the adapter is small: its effect is about linear in the strength
    effect, turned, halved = predictions[0] - predictions[1], predictions[0] - predictions[2], 0.25
    torch.testing.assert_close(turned, halved * effect, rtol=0.1, atol=0.1 * effect.abs().max().item())
    assert effect.abs().max() > 1e-4


def test_the_strength_holds_for_recomputed_activations_too(train):
    options = {"max_train_steps": 5, "num_train_epochs": None, "learning_rate": 1e-2}
    sets = {**EDITS, "end_step": 4}, {**MORE, "start_step": 5, "slider_strength": -1}
    kept = train.with_datasets(*sets, **options)
    recomputed = train.with_datasets(*sets, **options, gradient_checkpointing="true")
    assert kept.results[-1].grad_norm == pytest.approx(recomputed.results[-1].grad_norm, rel=1e-4)
    turned = train.with_datasets(sets[0], {**MORE, "start_step": 5}, **options)
    assert turned.results[-1].grad_norm != pytest.approx(kept.results[-1].grad_norm, rel=1e-3)


def test_compiled_blocks_see_regularisation_and_strength(train):
    guard = {**MORE, "is_regularisation_data": True, "start_step": 3}
    slider = {**MORE, "id": "slider", "slider_strength": -1, "start_step": 4}
    options = {"max_train_steps": 8, "num_train_epochs": None, "learning_rate": 1e-2}
    plain = train.with_datasets(EDITS, guard, slider, **options)
    compiled = train.with_datasets(EDITS, guard, slider, **options, dynamo_backend="aot_eager")
    kinds = {(fed.batch.regularises, fed.batch.strength) for fed in plain.fed}
    assert kinds == {(False, 1), (True, 1), (False, -1)}
    assert [one.loss for one in compiled.results] == pytest.approx([one.loss for one in plain.results], rel=1e-3)


@pytest.mark.parametrize(("recomputed", "accumulated"), [("false", 1), ("true", 3)])
def test_recorded_steps_train_sets_of_every_kind_as_plain_ones_do(train, monkeypatch, recomputed, accumulated):
    """Sets of one shape differ in what is computed: each kind needs a recording of its own."""
    sets = [
        {**EDITS, "train_batch_size": 2},
        {**MORE, "timestep_sampling_offset": 1},
        {**MORE, "id": "guard", "is_regularisation_data": True, "start_step": 2},
        {**MORE, "id": "slider", "slider_strength": -1},
        {**MORE, "id": "gentle guard", "slider_strength": 0.5, "is_regularisation_data": True, "end_step": 12},
    ]
    options = {
        "max_train_steps": 24 // accumulated, "num_train_epochs": None, "learning_rate": 3e-3,
        "gradient_accumulation_steps": accumulated, "gradient_checkpointing": recomputed,
    }  # fmt: skip
    plain = train.with_datasets(*sets, **options)
    recorder = Recorder()

    def record(state, reporter):
        state.recorded = RecordedSteps(state.trained, reporter.say, recorder)

    monkeypatch.setattr(session, "record_steps", record)
    recorded = train.with_datasets(*sets, **options, output_dir=f"recorded-{recomputed}-{accumulated}")
    kinds = Counter((fed.batch.latents.shape, fed.batch.regularises, fed.batch.strength) for fed in plain.fed)
    assert recorder.recordings == sum(times > 1 for times in kinds.values()) > 3  # the first of a kind is computed
    assert [one.loss for one in recorded.results] == pytest.approx([one.loss for one in plain.results], rel=1e-5)
    torch.testing.assert_close(recorded.weights[-1], plain.weights[-1], rtol=1e-5, atol=1e-6)
