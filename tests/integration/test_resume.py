"""A run that was stopped at any moment continues as if it had never stopped."""

import json
import random
import shutil
import time

import pytest
from forked_runs import ForkedRun
from long_runs import ADAPTER, changed, checkpoints, killed, losses, steps_of, wait_until

from conftest import EditPairs, read_metrics, run_in

DEMANDING = (
    "--lora_dropout", 0.1, "--caption_dropout_probability", 0.3, "--reference_dropout_probability", 0.3,
    "--train_batch_size", 2, "--gradient_accumulation_steps", 2, "--lr_scheduler", "cosine", "--lr_warmup_steps", 4,
    "--flux_guidance_mode", "random-range", "--vae_cache_sample", "sample",
    "--conditioning_multidataset_sampling", "random", "--max_train_steps", 20, "--checkpoint_step_interval", 7,
)  # fmt: skip
"""Everything that draws at random or changes with the steps."""
VALIDATION = {
    "validation_steps": 4, "num_eval_images": 1, "validation_num_inference_steps": 1, "validation_resolution": 64,
}  # fmt: skip


def test_killed_and_resumed_run_gives_the_bytes_of_an_uninterrupted_one(command, edit_pairs):
    datasets = edit_pairs(count=7, reference_sets=2)
    arguments = (*edit_pairs.kontext, "--data_backend_config", datasets, *DEMANDING)
    whole = command(*arguments, "--output_dir", "whole")
    assert whole.status == 0, whole.err

    # images are drawn in this one and not in the other: they must change nothing
    process = ForkedRun(edit_pairs.folder, changed(arguments, **VALIDATION))
    wait_until(process, lambda: (edit_pairs.output / "checkpoint-7").is_dir())
    assert killed(process)
    assert not (edit_pairs.output / "checkpoint-20").exists()
    assert not (edit_pairs.output / ADAPTER).exists()
    assert 7 <= steps_of(edit_pairs.output)[-1] < 20

    resumed = command(*changed(arguments, **VALIDATION))
    assert resumed.status == 0, resumed.err
    assert "resumed output/checkpoint-" in resumed.err
    expected = (edit_pairs.folder / "whole" / ADAPTER).read_bytes()
    assert (edit_pairs.output / ADAPTER).read_bytes() == expected
    assert losses(edit_pairs.output) == losses(edit_pairs.folder / "whole")


def test_checkpoints_of_a_run_killed_at_any_moment_load(command, edit_pairs):
    arguments = (*edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--checkpoint_step_interval", 1)
    assert command(*arguments, "--max_train_steps", 1).status == 0
    draw = random.Random()
    for _ in range(2):
        before = len(checkpoints(edit_pairs.output))
        process = ForkedRun(edit_pairs.folder, (*arguments, "--max_train_steps", 100_000))
        wait_until(process, lambda before=before: len(checkpoints(edit_pairs.output)) > before)
        time.sleep(draw.uniform(0, 0.5))
        assert killed(process)
    found = checkpoints(edit_pairs.output)
    assert len(found) > 2
    for name in found:
        resuming = {"resume_from_checkpoint": f"output/{name}", "max_train_steps": 1, "output_dir": "elsewhere"}
        ended = command(*changed(arguments, **resuming))
        assert ended.status == 0, ended.err
        steps = name.removeprefix("checkpoint-")
        assert f"output/{name} has {steps} steps, and the run needs 1" in ended.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Do a run of four steps with two checkpoints and its caches; return (folder, arguments)."""
    folder = tmp_path_factory.mktemp("trained")
    pairs = EditPairs(folder)
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=6), "--checkpoint_step_interval", 2)
    ended = run_in(folder, *arguments, "--max_train_steps", 4)
    assert ended.status == 0, ended.err
    return folder, arguments


@pytest.fixture
def again(trained, tmp_path):
    """Resume a copy of that run to six steps, with other options."""
    folder, arguments = trained
    output = tmp_path / "output"
    shutil.copytree(folder / "output", output)

    def start(program=(), **options):
        options = {"output_dir": output, "max_train_steps": 6, **options}
        return run_in(folder, *program, *changed(arguments, **options))

    start.output = output
    return start


@pytest.fixture(scope="module")
def six_steps(trained):
    """Return the adapter of six steps in one run."""
    folder, arguments = trained
    ended = run_in(folder, *arguments, "--output_dir", "six", "--max_train_steps", 6)
    assert ended.status == 0, ended.err
    return (folder / "six" / ADAPTER).read_bytes()


def test_a_run_made_longer_continues_from_its_end(again, six_steps):
    ended = again()
    assert ended.status == 0, ended.err
    assert "checkpoint-4 at step 4" in ended.err
    assert "changed since that checkpoint, and taken over: max_train_steps 4 -> 6" in ended.err
    assert (again.output / ADAPTER).read_bytes() == six_steps


@pytest.mark.parametrize("how", ["name", "path"])
def test_a_given_checkpoint_is_resumed_and_newer_ones_are_kept_aside(again, six_steps, how):
    given = "checkpoint-2" if how == "name" else again.output / "checkpoint-2"
    ended = again(resume_from_checkpoint=given)
    assert ended.status == 0, ended.err
    assert "checkpoint-2 at step 2" in ended.err
    assert (again.output / ADAPTER).read_bytes() == six_steps
    assert checkpoints(again.output / "previous-1") == ["checkpoint-4"]
    assert steps_of(again.output) == [1, 2, 3, 4, 5, 6]


def test_rotation_after_resuming_an_old_checkpoint_keeps_the_new_ones(again):
    ended = again(resume_from_checkpoint="checkpoint-2", checkpoints_total_limit=1, max_train_steps=3)
    assert ended.status == 0, ended.err
    assert checkpoints(again.output) == ["checkpoint-3"]


def test_a_given_path_that_is_no_checkpoint_is_an_error_that_lists_them(again):
    ended = again(resume_from_checkpoint="checkpoint-3")
    assert ended.status == 2
    assert "checkpoint-3 is not a checkpoint" in ended.err
    assert "checkpoint-2, checkpoint-4" in ended.err


def test_a_half_written_checkpoint_is_not_resumed_and_is_cleaned_up(again, six_steps):
    partial = again.output / ".checkpoint-5.partial"
    (partial / "resume").mkdir(parents=True)
    (partial / "resume" / "state.json").write_text('{"step": 5, "posi')
    ended = again()
    assert ended.status == 0, ended.err
    assert "checkpoint-4 at step 4" in ended.err
    assert not partial.exists()
    assert (again.output / ADAPTER).read_bytes() == six_steps


@pytest.mark.parametrize("name", ["state.json", "adapter.safetensors", "optimizer.pt", "visits.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone", "a byte of it"])
def test_a_damaged_checkpoint_gives_one_clear_error(again, name, damage):
    path = again.output / "checkpoint-4" / "resume" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-content[::-1].index(b"0" if name == "state.json" else content[-40]) - 1] ^= 0x80
        path.write_bytes(content)
    ended = again()
    assert ended.status == 2
    assert ended.err.count("error:") == 1
    assert "checkpoint-4 is damaged" in ended.err
    assert f"--resume_from_checkpoint {again.output / 'checkpoint-2'}" in ended.err


def test_another_batch_size_continues_by_sample_and_is_reported(again):
    state = json.loads((again.output / "checkpoint-4" / "resume" / "state.json").read_text())
    assert (state["epoch"], state["samples"]) == (0, 4)
    ended = again(train_batch_size=2)
    assert ended.status == 0, ended.err
    assert "train_batch_size 1 -> 2" in ended.err
    assert "epoch 0, after 4 of its samples" in ended.err
    # two of the six samples were left: one batch, then the next epoch
    assert [(line["epoch"], line["samples"]) for line in read_metrics(again.output)][4:] == [(0, 2), (1, 2)]


def test_a_run_in_epochs_ends_with_its_last_epoch_after_another_batch_size(again):
    # four of six samples are taken: "has 4 steps, needs 2" once ended it here
    ended = again(train_batch_size=2, max_train_steps=0, num_train_epochs=2)
    assert ended.status == 0, ended.err
    lines = read_metrics(again.output)
    assert [(line["epoch"], line["samples"]) for line in lines][4:] == [(0, 2), (1, 2), (1, 2), (1, 2)]
    assert checkpoints(again.output)[-1] == "checkpoint-8"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("seed", 7, "seed was 42 and is now 7"),
        ("lora_rank", 8, "lora_rank was 4 and is now 8"),
        ("lora_alpha", 8, "lora_alpha was 4.0 and is now 8.0"),
        ("optimizer", "optimi-lion", "optimizer was adamw_bf16 and is now optimi-lion"),
        ("flavour", "dev", "model_flavour was kontext and is now dev"),
    ],
)
def test_what_cannot_change_on_the_way_is_refused_with_both_values(again, option, value, said):
    before = (again.output / ADAPTER).read_bytes()
    ended = again(**{option: value})
    assert ended.status == 2
    assert said in ended.err or (option == "flavour" and "takes none" in ended.err)
    assert "load model" not in ended.err
    assert (again.output / ADAPTER).read_bytes() == before


def test_alpha_that_is_written_out_is_no_change(again, six_steps):
    ended = again(lora_alpha=4)
    assert ended.status == 0, ended.err
    assert (again.output / ADAPTER).read_bytes() == six_steps


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"train_batch_size": 2}, {"train_batch_size": 4}),
        ({"train_batch_size": 3}, {"train_batch_size": 1, "gradient_accumulation_steps": 2}),
        ({"train_batch_size": 1}, {"train_batch_size": 2, "reference_dropout_probability": 0.5}),
    ],
)
def test_every_sample_of_an_epoch_is_trained_exactly_once_over_a_resume(tmp_path, monkeypatch, first, then):
    from difftrain.steps.tally import Tally

    trained = []
    original = Tally.add
    monkeypatch.setattr(
        Tally, "add", lambda self, micro, *rest: trained.extend(micro.batch.keys) or original(self, micro, *rest)
    )
    pairs = EditPairs(tmp_path)
    datasets = pairs(count=23, edit_sizes=[(64, 64), (96, 48), (48, 96)])
    arguments = (*pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", 5)
    assert run_in(tmp_path, *changed(arguments, **first)).status == 0
    begun = len(trained)
    ended = run_in(tmp_path, *changed(arguments, max_train_steps=0, num_train_epochs=1, **then))
    assert ended.status == 0, ended.err
    assert 0 < begun < len(trained)
    assert sorted(trained) == [f"edits/{index:04}" for index in range(23)]


def settings_in(checkpoint):
    """Return the settings of the optimizer's groups in a checkpoint."""
    import torch

    groups = torch.load(checkpoint / "resume" / "optimizer.pt", weights_only=True)["groups"]
    return [group["settings"] for group in groups]


def test_an_optimizer_setting_that_was_changed_is_taken_over(again, six_steps):
    ended = again(optimizer_config="weight_decay=0.5,eps=1e-3")
    assert ended.status == 0, ended.err
    assert "optimizer_config.weight_decay unset -> 0.5" in ended.err
    (group,) = settings_in(again.output / "checkpoint-6")
    assert (group["weight_decay"], group["eps"], group["beta1"]) == (0.5, 1e-3, 0.9)
    assert (again.output / ADAPTER).read_bytes() != six_steps


def test_a_changed_setting_stays_through_the_next_resume(again):
    assert again(optimizer_config="weight_decay=0.5").status == 0
    ended = again(optimizer_config="weight_decay=0.5", max_train_steps=7)
    assert ended.status == 0, ended.err
    assert "optimizer_config" not in ended.err
    assert settings_in(again.output / "checkpoint-7")[0]["weight_decay"] == 0.5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", 5e-3), ("lr_scheduler", "linear"), ("lr_warmup_steps", 20), ("max_grad_norm", 1e-3),
        ("caption_dropout_probability", 1), ("reference_dropout_probability", 1), ("lora_dropout", 0.9),
        ("timestep_sampler", "uniform"), ("flow_schedule_shift", 9), ("flux_guidance_value", 30),
        ("vae_cache_sample", "mean"), ("gradient_accumulation_steps", 2),
    ],
)  # fmt: skip
def test_every_other_option_that_is_said_to_be_taken_over_is(again, six_steps, option, value):
    ended = again(**{option: value})
    assert ended.status == 0, ended.err
    (said,) = [line for line in ended.err.splitlines() if line.startswith("changed since that checkpoint, and taken")]
    assert f"{option} " in said
    assert (again.output / ADAPTER).read_bytes() != six_steps


def test_changed_data_is_reported(again, trained):
    folder, _ = trained
    captions = folder / "edits" / "0001.txt"
    before = captions.read_text()
    try:
        captions.write_text("another wording")
        ended = again()
        assert ended.status == 0, ended.err
        assert (
            "the data has changed since that checkpoint: dataset 'edits' has the same number of samples, but "
            "other images, captions or crops"
        ) in ended.err
    finally:
        captions.write_text(before)


def test_an_unchanged_dataset_is_not_said_to_be_changed(again):
    assert "the data has changed" not in again().err


def test_no_older_state_is_exported_over_a_newer_adapter(again):
    newer = (again.output / ADAPTER).read_bytes()
    ended = again(resume_from_checkpoint="checkpoint-2", max_train_steps=2)
    assert ended.status == 0, ended.err
    assert "checkpoint-2 has 2 steps, and the run needs 2: nothing is left to train" in ended.err
    assert (again.output / ADAPTER).read_bytes() == newer
    assert checkpoints(again.output) == ["checkpoint-2", "checkpoint-4"]


def test_fewer_steps_than_the_newest_checkpoint_has_change_nothing(again):
    newer = (again.output / ADAPTER).read_bytes()
    ended = again(max_train_steps=1)
    assert ended.status == 0, ended.err
    assert (again.output / ADAPTER).read_bytes() == newer


@pytest.mark.parametrize("program", [(), ("check",)])
@pytest.mark.parametrize("other", [2, 99])
def test_a_checkpoint_of_another_version_is_called_so(again, program, other):
    path = again.output / "checkpoint-4" / "resume" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "format": other}))
    ended = again(program=program)
    assert ended.status == 2
    assert f"checkpoint-4 has format {other}, written by another version of difftrain" in ended.err
    assert "damaged" not in ended.err


@pytest.mark.parametrize("program", [(), ("check",)])
@pytest.mark.parametrize("how", ["latest", "by name"])
def test_a_checkpoint_of_another_program_is_called_so(again, program, how):
    foreign = again.output / "checkpoint-9"
    foreign.mkdir()
    (foreign / "pytorch_lora_weights.safetensors").write_bytes(b"of another program")
    ended = again(program=program, resume_from_checkpoint="latest" if how == "latest" else "checkpoint-9")
    assert ended.status == 2
    assert "checkpoint-9 was written by another program" in ended.err
    assert "damaged" not in ended.err
    assert (foreign / "pytorch_lora_weights.safetensors").is_file()


def test_a_checkpoint_of_another_program_is_moved_and_not_deleted_by_starting_over(again):
    foreign = again.output / "checkpoint-2000"
    foreign.mkdir()
    (foreign / "optimizer.bin").write_bytes(b"of another program")
    ended = again(resume_from_checkpoint="none", max_train_steps=1, checkpoints_total_limit=1)
    assert ended.status == 0, ended.err
    assert (again.output / "previous-1" / "checkpoint-2000" / "optimizer.bin").read_bytes() == b"of another program"


def test_a_finished_run_whose_adapter_was_not_written_any_more_gets_it(again):
    expected = (again.output / ADAPTER).read_bytes()
    (again.output / ADAPTER).unlink()
    ended = again(max_train_steps=4)
    assert ended.status == 0, ended.err
    assert "nothing is left to train" in ended.err
    assert (again.output / ADAPTER).read_bytes() == expected


def test_an_adapter_of_an_earlier_step_is_not_left_as_the_finished_runs(again):
    # as after: trained to 2, made longer, stopped at 4, shortened to 4
    old = (again.output / "checkpoint-2" / ADAPTER).read_bytes()
    (again.output / ADAPTER).write_bytes(old)
    ended = again(max_train_steps=4)
    assert ended.status == 0, ended.err
    assert (again.output / ADAPTER).read_bytes() == (again.output / "checkpoint-4" / ADAPTER).read_bytes() != old


def test_going_on_from_another_folder_keeps_what_is_in_this_one_aside(again, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(again.output, other)
    ended = again(output_dir=other, resume_from_checkpoint=again.output / "checkpoint-2", max_train_steps=3)
    assert ended.status == 0, ended.err
    assert checkpoints(other) == ["checkpoint-3"]
    assert checkpoints(other / "previous-1") == ["checkpoint-2", "checkpoint-4"]
    assert steps_of(other) == [3]


@pytest.mark.parametrize("program", [(), ("check",)])
@pytest.mark.parametrize(
    "change",
    [
        {"step": -3}, {"step": True}, {"step": "4"}, {"step": 3}, {"epoch": 1.5}, {"epoch": None}, {"samples": "99"},
        {"config": None}, {"config": [1]}, {"data": {"edits": 3}}, {"files": None}, {"plugins": []}, {"processes": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_state_of_odd_content_is_one_clear_error(again, program, change):
    path = again.output / "checkpoint-4" / "resume" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    ended = again(program=program)
    assert ended.status == 2
    assert ended.err.count("error:") == 1
    assert "checkpoint-4 is damaged: state.json" in ended.err
    assert next(iter(change)) in ended.err


@pytest.mark.parametrize("content", ["[]", "null", "[" * 100_000, '{"format": 3}'], ids=len)
def test_a_state_that_is_no_state_is_one_clear_error(again, content):
    (again.output / "checkpoint-4" / "resume" / "state.json").write_text(content)
    ended = again()
    assert ended.status == 2
    assert "checkpoint-4 is damaged" in ended.err


@pytest.mark.parametrize("program", [(), ("check",)])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixed_precision": "bf16"}, "mixed_precision was no, with float32 weights, and is now bf16"),
        ({"flux_lora_target": "mmdit"}, "flux_lora_target was all and is now mmdit"),
    ],
)
def test_what_the_weights_do_not_fit_is_reported_before_the_model_is_loaded(again, program, options, said):
    ended = again(program=program, **options)
    assert ended.status == 2
    assert said in ended.err
    assert "load model" not in ended.err


def test_repeats_that_changed_are_reported(again, trained):
    folder, _ = trained
    entries = json.loads((folder / "datasets.json").read_text())
    entries[0]["repeats"] = 3
    (folder / "more.json").write_text(json.dumps(entries))
    ended = again(data_backend_config="more.json")
    assert ended.status == 0, ended.err
    assert "dataset 'edits' had 6 samples, repeats 0, probability 1, has 6 samples, repeats 3" in ended.err
