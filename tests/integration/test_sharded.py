"""Sharded weights are saved whole and resumed sharded: two processes, with and without sharding, and one."""

import pytest
import torch
from forked_runs import DIFFTRAIN, two_ranks
from long_runs import ADAPTER, changed, checkpoints
from safetensors.torch import load_file

from conftest import EditPairs, run_in

ADAMW = """
import torch

from difftrain import OptimizerFactory, hookimpl


class TorchAdamW(OptimizerFactory):
    name = "torch-adamw"

    def build(self, parameters, learning_rate):
        return torch.optim.AdamW(parameters, lr=learning_rate)


@hookimpl
def difftrain_optimizers():
    return (TorchAdamW,)
"""


def two_processes(folder, arguments, *, sharded, works=True):
    """What the processes say; they must train, or with ``works=False`` end early."""
    statuses, said = two_ranks(folder, arguments, "sharded_run:main" if sharded else DIFFTRAIN)
    assert (statuses == [0, 0]) is works, said
    return said


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four steps in two processes, sharded and not; gives (folder, arguments)."""
    folder = tmp_path_factory.mktemp("sharded")
    pairs = EditPairs(folder)
    (folder / "adamw.py").write_text(ADAMW)
    # rank 3 does not divide by two processes; norms and accumulated gradients are summed in another order
    arguments = changed(
        (*pairs.kontext, "--data_backend_config", pairs(count=8)), max_train_steps=4, checkpoint_step_interval=2,
        lora_rank=3, lora_alpha=6, max_grad_norm=0,
        plugins="./adamw.py", optimizer="torch-adamw",
    )  # fmt: skip
    for name in ("whole", "sharded"):
        two_processes(folder, changed(arguments, output_dir=name), sharded=name == "sharded")
    return folder, arguments


def optimizer_of(checkpoint):
    return torch.load(checkpoint / "resume" / "optimizer.pt", weights_only=True)


def assert_same(first, second):
    """Equal in types and bits."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    else:
        assert first == second


def test_the_sharded_run_has_trained_in_parts_and_saved_at_the_same_steps(runs):
    folder, _ = runs
    told = optimizer_of(folder / "sharded" / "checkpoint-4")
    assert len(told["sharded"]) == len(told["parameters"]) > 0
    assert optimizer_of(folder / "whole" / "checkpoint-4")["sharded"] == []
    assert checkpoints(folder / "sharded") == checkpoints(folder / "whole") == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_sharded_run_saves_the_bytes_of_one_that_is_not(runs, step):
    folder, _ = runs
    whole, sharded = (folder / name / f"checkpoint-{step}" for name in ("whole", "sharded"))
    for name in (ADAPTER, "resume/adapter.safetensors", "resume/visits.safetensors"):
        assert (sharded / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = optimizer_of(whole), optimizer_of(sharded)
    assert any(tensor.count_nonzero() for tensor in next(iter(first["state"].values())).values())
    for key in ("optimizer", "parameters", "groups", "state", "more"):
        assert_same(first[key], second[key])


def test_the_finished_adapter_of_a_sharded_run_is_exported(runs):
    folder, _ = runs
    assert (folder / "sharded" / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()
    trained = load_file(folder / "sharded" / ADAPTER)
    assert any(".lora_B." in name and tensor.count_nonzero() for name, tensor in trained.items())


@pytest.mark.parametrize("asked", [{"validation_steps": 2}, {"validation_on_startup": "true"}])
def test_validation_of_sharded_weights_is_refused_before_the_first_step(runs, asked):
    folder, arguments = runs
    output = f"validating-{next(iter(asked))}"
    told = two_processes(folder, changed(arguments, output_dir=output, **asked), sharded=True, works=False)
    ((option, value),) = asked.items()
    problem = f"error: {option} = {value}: the weights of this run are sharded over 2 processes"
    assert told.count(problem) == 1, told
    assert 'hint: set "validation_steps": 0 and "validation_on_startup": false' in told
    assert "step 1" not in told
    assert not (folder / output / "metrics.jsonl").exists()


def test_one_process_continues_from_a_sharded_run_as_from_another(runs):
    folder, arguments = runs
    for name in ("whole", "sharded"):
        options = {"output_dir": f"one-{name}", "resume_from_checkpoint": f"{name}/checkpoint-2"}
        ended = run_in(folder, *changed(arguments, **options))
        assert ended.status == 0, ended.err
        assert f"resumed {name}/checkpoint-2 at step 2" in ended.err
    first, second = (folder / f"one-{name}" for name in ("whole", "sharded"))
    assert (first / ADAPTER).read_bytes() == (second / ADAPTER).read_bytes()
    assert (first / ADAPTER).read_bytes() != (folder / "whole" / "checkpoint-2" / ADAPTER).read_bytes()
    assert_same(optimizer_of(first / "checkpoint-4"), optimizer_of(second / "checkpoint-4"))


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_continue_from_a_sharded_run_as_if_it_had_never_stopped(runs, sharded):
    folder, arguments = runs
    output = f"two-{sharded}"
    options = {"output_dir": output, "resume_from_checkpoint": "sharded/checkpoint-2"}
    two_processes(folder, changed(arguments, **options), sharded=sharded)
    assert (folder / output / ADAPTER).read_bytes() == (folder / "whole" / ADAPTER).read_bytes()


def test_a_sharded_run_continues_from_one_process(runs):
    folder, arguments = runs
    ended = run_in(folder, *changed(arguments, output_dir="alone", max_train_steps=2))
    assert ended.status == 0, ended.err
    for sharded in (False, True):
        options = {"output_dir": f"joined-{sharded}", "resume_from_checkpoint": "alone/checkpoint-2"}
        two_processes(folder, changed(arguments, **options), sharded=sharded)
    first, second = (folder / f"joined-{sharded}" / "checkpoint-4" for sharded in (False, True))
    assert (first / ADAPTER).read_bytes() == (second / ADAPTER).read_bytes()
    assert_same(optimizer_of(first)["state"], optimizer_of(second)["state"])
