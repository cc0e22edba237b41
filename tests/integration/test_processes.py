"""Two processes on one machine train one model, on the CPU, through gloo.

One test starts them by torchrun; the others begin them as torchrun would.
"""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from forked_runs import two_ranks
from long_runs import ADAPTER, changed, checkpoints, signalled, steps_of, wait_until

from conftest import EditPairs, read_metrics, run_in

WATCHING_PLUGIN = '''
import json
import os

import torch

from difftrain import Observer, OptimizerFactory, hookimpl
from difftrain.data.samples import made_images
from difftrain.data.scanning import image_index
from difftrain.data.caching.tensor_cache import TensorCache


def told(owner, name):
    """Let every process record that it did this."""
    original = getattr(owner, name)

    def wrapper(*arguments, **options):
        with open(f"{name}.txt", "a") as file:
            file.write(os.environ.get("RANK", "0"))
        return original(*arguments, **options)

    setattr(owner, name, wrapper)


if "RANK" in os.environ:  # never in the process of the tests, which other tests share
    told(image_index, "read_all")
    told(made_images, "_make_one")
    told(TensorCache, "write")


class WatchedAdamW(OptimizerFactory):
    """AdamW that records the weights of every process after each step."""

    name = "watched-adamw"

    def build(self, parameters, learning_rate):
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate)

        def watch(optimizer, arguments, options):
            sums = [parameter.double().abs().sum().item() for _, parameter in parameters]
            with open(f"weights-{os.environ.get('RANK', 0)}.jsonl", "a") as file:
                file.write(json.dumps(sums) + "\\n")

        optimizer.register_step_post_hook(watch)
        return optimizer


@hookimpl
def difftrain_optimizers():
    return (WatchedAdamW,)


class Saved(Observer):
    """Records in which process it hears of a checkpoint."""

    name = "saved"

    def checkpoint_saved(self, step, path):
        with open("saved.txt", "a") as file:
            file.write(f"{os.environ.get('RANK', 0)} {step}\\n")


@hookimpl
def difftrain_observers():
    return (Saved,)
'''


def torchrun(folder, arguments):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "difftrain")
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Finish a run of two processes that starts with empty caches; return (folder, arguments, output)."""
    folder = tmp_path_factory.mktemp("two")
    pairs = EditPairs(folder)
    (folder / "watching.py").write_text(WATCHING_PLUGIN)
    generated = [{"type": "jpeg_artifacts", "captions": "restore it"}]
    datasets = pairs(count=8, conditioning=generated)
    arguments = changed(
        (*pairs.kontext, "--data_backend_config", datasets), plugins="./watching.py", optimizer="watched-adamw",
        train_batch_size=2, gradient_accumulation_steps=2, max_train_steps=12, lora_dropout=0.1, learning_rate=3e-3,
        validation_steps=12, validation_on_startup="true", num_eval_images=0,
    )  # fmt: skip
    statuses, said = two_ranks(folder, arguments)
    assert statuses == [0, 0], said
    return folder, arguments, said


def test_metrics_count_the_samples_of_both_processes(two_processes):
    folder, _, _ = two_processes
    lines = [line for line in read_metrics(folder / "output") if "loss" in line]
    # two samples per batch, two batches per step, two processes; eight samples are one epoch
    assert [line["samples"] for line in lines] == [8] * 12
    assert [line["epoch"] for line in lines] == list(range(12))


def test_weights_are_equal_in_both_processes_after_every_step(two_processes):
    folder, _, _ = two_processes
    first, second = ((folder / f"weights-{rank}.jsonl").read_text().splitlines() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 12


def test_both_processes_together_learn(two_processes):
    folder, _, _ = two_processes
    fixed = [line["fixed_loss"] for line in read_metrics(folder / "output") if "fixed_loss" in line]
    assert len(fixed) == 2
    assert fixed[1] < 0.97 * fixed[0]


def test_only_the_first_process_saves_and_it_says_where(two_processes):
    folder, _, said = two_processes
    assert (folder / "saved.txt").read_text() == "0 12\n"
    assert (folder / "output" / ADAPTER).exists()
    assert said.count("adapter:     output") == 1


@pytest.mark.parametrize("work", ["read_all", "_make_one"])
def test_files_are_hashed_and_images_made_by_the_first_process_alone(two_processes, work):
    folder, _, _ = two_processes
    assert set((folder / f"{work}.txt").read_text()) == {"0"}


def test_both_processes_encode_half_of_the_images_and_captions_each(two_processes):
    folder, _, _ = two_processes
    by_rank = (folder / "write.txt").read_text()
    # 8 targets, 8 references, 8 made ones; a caption each, that of the made ones, the empty one
    assert abs(by_rank.count("0") - by_rank.count("1")) <= 2
    assert len(by_rank) == 24 + 10


def test_terminated_run_saves_and_one_process_continues_from_it(two_processes):
    folder, arguments, _ = two_processes
    output = folder / "terminated"
    arguments = changed(arguments, output_dir=output, max_train_steps=2000, validation_on_startup="false")
    process = torchrun(folder, arguments)
    wait_until(process, lambda: (output / "metrics.jsonl").exists() and len(steps_of(output)) >= 2)
    said = signalled(process, signal.SIGTERM)
    assert process.returncode != 0
    (saved,) = checkpoints(output)
    done = steps_of(output)[-1]
    assert saved == f"checkpoint-{done}"
    (command,) = [line.strip() for line in said.splitlines() if "--resume_from_checkpoint latest" in line]
    assert "--nproc_per_node 2 -m difftrain --model flux" in command

    resumed = run_in(folder, *changed(arguments, max_train_steps=done + 1, validation_steps=0))
    assert resumed.status == 0, resumed.err
    assert "processes 2 -> 1" in resumed.err
    state = json.loads((output / saved / "resume" / "state.json").read_text())
    assert state["processes"] == 2
    assert f"after {state['samples']} of its samples" in resumed.err


def test_sets_of_every_kind_train_in_two_processes_and_one_process_continues(tmp_path):
    EditPairs(tmp_path)(count=7, edit_sizes=[(96, 64)], references=None)
    (tmp_path / "watching.py").write_text(WATCHING_PLUGIN)
    own = {"instance_data_dir": "edits", "resolution": 64}
    crops = {"crop": True, "crop_style": "random", "vae_cache_clear_each_epoch": True}
    sets = [
        {**own, "id": "edits", "train_batch_size": 2, **crops},
        {**own, "id": "guard", "is_regularisation_data": True, "start_step": 2, "timestep_sampling_offset": 1},
        {**own, "id": "slider", "slider_strength": -1, "end_step": 5},
    ]
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    flags = changed(
        (*EditPairs(tmp_path).kontext, "--data_backend_config", "sets.json"), plugins="./watching.py",
        optimizer="watched-adamw", max_train_steps=12, gradient_accumulation_steps=2, checkpoint_step_interval=4,
    )  # fmt: skip
    statuses, said = two_ranks(tmp_path, flags)
    assert statuses == [0, 0], said
    first, second = ((tmp_path / f"weights-{rank}.jsonl").read_text().splitlines() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 12
    assert said.count("from step 2 on (epoch 1): 'guard' begins") == 1
    continued = {"resume_from_checkpoint": "output/checkpoint-4", "output_dir": "alone", "max_train_steps": 6}
    resumed = run_in(tmp_path, *changed(flags, **continued))
    assert resumed.status == 0, resumed.err
    assert "'slider' ends" in resumed.err


def test_a_regularisation_set_trains_in_two_processes_on_a_base_in_eight_bits(tmp_path):
    # its layers hold buffers, which DDP would exchange in each forward: one process has two, the other one
    own = {"instance_data_dir": "edits", "resolution": 64, "train_batch_size": 1}
    sets = [{**own, "id": "edits"}, {**own, "id": "guard", "is_regularisation_data": True, "max_num_samples": 3}]
    pairs = EditPairs(tmp_path)
    pairs(count=5, references=None)
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    arguments = changed(
        pairs.kontext, data_backend_config="sets.json", max_train_steps=6, base_model_precision="int8-matmul"
    )
    statuses, said = two_ranks(tmp_path, changed(arguments, output_dir="two"))
    assert statuses == [0, 0], said
    assert len(steps_of(tmp_path / "two")) == 6


def test_processes_with_four_samples_and_one_have_the_gradient_of_five(tmp_path):
    statuses, said = two_ranks(tmp_path, (), "uneven_step:main")
    assert statuses == [0, 0], said
    told = re.findall(r"process (\d): gradient ([\d.]+), loss ([\d.]+)", said)
    assert sorted(told) == [("0", "4.000000", "4.000000"), ("1", "4.000000", "4.000000")]


ARRIVING_PLUGIN = """
import os
import shutil

from difftrain.startup import prepare_run

original = prepare_run.prepare_samples


def prepared_later(*arguments, **options):
    for folder in ("edits", "references"):
        shutil.copy(f"{folder}/0000.png", f"{folder}/arrived.png")
    shutil.copy("edits/0000.txt", "edits/arrived.txt")
    return original(*arguments, **options)


if os.environ.get("RANK") == "1":
    prepare_run.prepare_samples = prepared_later
"""


def test_a_file_that_arrives_between_the_scans_of_two_processes_is_one_error_before_the_first_step(edit_pairs):
    (edit_pairs.folder / "arriving.py").write_text(ARRIVING_PLUGIN)
    arguments = (*edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 4)
    statuses, said = two_ranks(edit_pairs.folder, (*arguments, "--plugins", "./arriving.py"))
    assert 0 not in statuses
    assert said.count("error:") == 1
    assert "error: the 2 processes of this run do not see the same: dataset 'edits': 4 samples, repeats 0" in said
    assert "in process 0, 5 samples, repeats 0" in said
    assert not (edit_pairs.output / "metrics.jsonl").exists()
