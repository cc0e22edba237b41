"""The optimizer's state on disk: exact, read without running code from it, and refused if it does not fit."""

import copy
import threading

import numpy as np
import optimi
import pytest
import torch
from torch import nn

from difftrain.errors import CheckpointError
from difftrain.steps import optimizer_state
from difftrain.steps.optimizer_state import check_storable, gather_optimizer, settings_of, write_optimizer
from difftrain.steps.optimizers import AdamWBf16, OptimiLion


def named(parameters):
    return [(f"layer.{number}", parameter) for number, parameter in enumerate(parameters)]


def adamw_bf16(parameters):
    return AdamWBf16().build(named(parameters), 1e-3)


def optimi_lion(parameters):
    return OptimiLion(weight_decay=0.01).build(named(parameters), 1e-3)


def torch_adamw(parameters):
    return torch.optim.AdamW(
        [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 3e-4}], lr=1e-3, amsgrad=True
    )


def unfused_adamw(parameters):
    return optimi.AdamW(parameters, lr=1e-3, foreach=False, triton=False)


CASES = [
    (adamw_bf16, torch.bfloat16),
    (adamw_bf16, torch.float32),
    (optimi_lion, torch.float32),
    (optimi_lion, torch.bfloat16),
    (torch_adamw, torch.float32),
    (torch_adamw, torch.bfloat16),
    (unfused_adamw, torch.bfloat16),
]


def names_of(optimizer):
    return named(parameter for group in optimizer.param_groups for parameter in group["params"])


def gathered(optimizer, built_with=None):
    built_with = built_with or getattr(optimizer, "built_with", settings_of(optimizer))
    return gather_optimizer(optimizer, names_of(optimizer), built_with)


def save_optimizer(optimizer, folder, built_with=None):
    write_optimizer(gathered(optimizer, built_with), folder / "optimizer.pt")


def load_optimizer(optimizer, folder, names=None):
    optimizer_state.load_optimizer(optimizer, names or names_of(optimizer), folder / "optimizer.pt")


def make_parameters(dtype, seed=0, shapes=((4, 3), (3,), (2, 2))):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def step(optimizer, parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * 0.9
    optimizer.step()


def trained(build, dtype, steps=3):
    parameters = make_parameters(dtype)
    optimizer = build(parameters)
    optimizer.built_with = copy.deepcopy(settings_of(optimizer))
    for seed in range(steps):
        step(optimizer, parameters, seed)
    return optimizer, parameters


def resumed(build, parameters, folder):
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    optimizer = build(copies)
    load_optimizer(optimizer, folder)
    return optimizer, copies


def same(first, second):
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and all(map(same, first, second)) and len(first) == len(second)
    return type(first) is type(second) and first == second


@pytest.mark.parametrize(("build", "dtype"), CASES)
def test_state_comes_back_with_equal_types_and_bits(build, dtype, tmp_path):
    optimizer, parameters = trained(build, dtype)
    save_optimizer(optimizer, tmp_path)
    again, _ = resumed(build, parameters, tmp_path)
    assert same(again.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize(("build", "dtype"), CASES)
def test_steps_after_loading_are_bit_equal_to_steps_without(build, dtype, tmp_path):
    optimizer, parameters = trained(build, dtype)
    save_optimizer(optimizer, tmp_path)
    again, copies = resumed(build, parameters, tmp_path)
    for seed in (11, 12, 13):
        step(optimizer, parameters, seed)
        step(again, copies, seed)
    assert same(copies, parameters)
    assert same(again.state_dict(), optimizer.state_dict())


def test_state_before_the_first_step_comes_back(tmp_path):
    parameters = make_parameters(torch.float32)
    optimizer = torch_adamw(parameters)
    save_optimizer(optimizer, tmp_path)
    again, _ = resumed(torch_adamw, parameters, tmp_path)
    assert same(again.state_dict(), optimizer.state_dict())


def test_kahan_compensation_of_bfloat16_weights_is_kept(tmp_path):
    optimizer, parameters = trained(adamw_bf16, torch.bfloat16)
    save_optimizer(optimizer, tmp_path)
    again, copies = resumed(adamw_bf16, parameters, tmp_path)
    assert again.state[copies[0]]["kahan_comp"].count_nonzero() > 0


class OddSettings(torch.optim.SGD):
    """Keeps every plain kind of value, and float32 state for bfloat16 weights, which torch casts on loading."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.param_groups[0].update(
            none=None, yes=True, whole=3, huge=2**70, real=0.1 + 0.2, text="é", pair=(1, 2.5), nested=[(1,), [None]],
            endless=float("inf"),
        )  # fmt: skip
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {"fine": torch.full(parameter.shape, 1 / 3, dtype=torch.float32), "note": None}


def test_every_plain_value_and_finer_state_come_back_exactly(tmp_path):
    parameters = make_parameters(torch.bfloat16)
    optimizer = OddSettings(parameters)
    save_optimizer(optimizer, tmp_path)
    again, _ = resumed(OddSettings, parameters, tmp_path)
    assert same(again.state_dict(), optimizer.state_dict())


class Stranger:
    """Something that only code can make."""


@pytest.mark.parametrize("stranger", [Stranger(), lambda: 1], ids=["object", "function"])
def test_what_torch_cannot_read_back_safely_is_refused_when_it_is_tried(tmp_path, stranger):
    optimizer = torch_adamw(make_parameters(torch.float32))
    optimizer.param_groups[0]["schedule"] = stranger
    with pytest.raises(CheckpointError, match=r"adamw\.AdamW keeps something that a checkpoint cannot hold: .+\nhint"):
        check_storable(gathered(optimizer), tmp_path / "trial")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("build", "dtype"), CASES)
def test_what_can_be_stored_passes_the_trial_and_leaves_nothing(build, dtype, tmp_path):
    optimizer, _ = trained(build, dtype)
    check_storable(gathered(optimizer), tmp_path / "trial")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_would_run_code_is_not_run(tmp_path):
    _, parameters = trained(torch_adamw, torch.float32)
    torch.save({"optimizer": print}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="cannot hold"):
        resumed(torch_adamw, parameters, tmp_path)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"weight_decay": 0.01}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "eps": 1e-8}),
        ({"eps": 1e-8}, {"eps": 1e-6}, {"eps": 1e-6, "weight_decay": 0.01}),
        ({"betas": (0.9, 0.999)}, {"betas": (0.8, 0.99)}, {"beta1": 0.8, "beta2": 0.99, "weight_decay": 0.01}),
    ],
)
def test_a_setting_that_the_user_changed_is_this_runs_and_all_else_is_the_checkpoints(tmp_path, before, now, expected):
    def build(options):
        return lambda parameters: AdamWBf16(**options).build(named(parameters), 1e-3)

    parameters = make_parameters(torch.float32)
    optimizer = build(before)(parameters)
    built_with = copy.deepcopy(settings_of(optimizer))
    for seed in range(3):
        step(optimizer, parameters, seed)
    save_optimizer(optimizer, tmp_path, built_with)
    again, _ = resumed(build(now), parameters, tmp_path)
    assert {key: again.param_groups[0][key] for key in expected} == expected
    # what the optimizer itself counts in its groups continues
    assert int(again.param_groups[0]["step"]) == 3


def test_what_an_optimizer_counts_in_its_groups_is_not_a_changed_setting(tmp_path):
    class Counting(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1)
            self.param_groups[0]["k"] = 0

    optimizer = Counting(make_parameters(torch.float32))
    built_with = settings_of(optimizer)
    optimizer.param_groups[0]["k"] = 7
    save_optimizer(optimizer, tmp_path, built_with)
    again, _ = resumed(Counting, make_parameters(torch.float32), tmp_path)
    assert again.param_groups[0]["k"] == 7


def test_another_optimizer_is_refused_by_name(tmp_path):
    optimizer, parameters = trained(adamw_bf16, torch.float32)
    save_optimizer(optimizer, tmp_path)
    with pytest.raises(CheckpointError, match=r"optimi\.adamw\.AdamW, this run's is optimi\.lion\.Lion"):
        resumed(optimi_lion, parameters, tmp_path)


@pytest.mark.parametrize(
    "parameters",
    [
        make_parameters(torch.bfloat16),
        make_parameters(torch.float32, shapes=((4, 3), (3,))),
        make_parameters(torch.float32, shapes=((4, 3), (3,), (2, 3))),
    ],
    ids=["dtype", "count", "shape"],
)
def test_other_parameters_are_refused(parameters, tmp_path):
    optimizer, _ = trained(adamw_bf16, torch.float32)
    save_optimizer(optimizer, tmp_path)
    with pytest.raises(CheckpointError, match="3 parameters"):
        resumed(adamw_bf16, parameters, tmp_path)


def test_another_division_into_groups_is_refused(tmp_path):
    optimizer, parameters = trained(torch_adamw, torch.float32)
    save_optimizer(optimizer, tmp_path)
    with pytest.raises(CheckpointError, match="group"):
        resumed(lambda parameters: torch.optim.AdamW(parameters), parameters, tmp_path)


def test_state_comes_back_by_name_whatever_the_order_of_the_parameters(tmp_path):
    optimizer, parameters = trained(torch_adamw, torch.float32)
    write_optimizer(gather_optimizer(optimizer, named(parameters), settings_of(optimizer)), tmp_path / "optimizer.pt")
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    shuffled = torch.optim.AdamW(
        [{"params": copies[:1]}, {"params": [copies[2], copies[1]], "lr": 3e-4}], lr=1e-3, amsgrad=True
    )
    load_optimizer(shuffled, tmp_path, named(copies))
    for before, after in zip(parameters, copies, strict=True):
        assert same(shuffled.state[after], optimizer.state[before])


def test_another_parameter_of_equal_shape_is_refused_by_name(tmp_path):
    optimizer, parameters = trained(torch_adamw, torch.float32)
    save_optimizer(optimizer, tmp_path)
    others = [("another", parameters[0]), *named(parameters)[1:]]
    with pytest.raises(CheckpointError, match=r"layer\.0 was float32\[4, 3\] and is now not there"):
        load_optimizer(torch_adamw(parameters), tmp_path, others)


def test_parameters_that_have_changed_their_group_are_refused(tmp_path):
    optimizer, parameters = trained(torch_adamw, torch.float32)
    save_optimizer(optimizer, tmp_path)
    other = torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:]}], amsgrad=True)
    with pytest.raises(CheckpointError, match="divides them differently"):
        load_optimizer(other, tmp_path, named(parameters))


def test_names_that_torch_keeps_in_the_groups_are_this_runs(tmp_path):
    first, second = (make_parameters(torch.float32) for _ in range(2))
    optimizer = torch.optim.SGD(named(first), lr=0.1, momentum=0.9)
    step(optimizer, first, 1)
    save_optimizer(optimizer, tmp_path)
    again = torch.optim.SGD(named(second)[::-1], lr=0.1, momentum=0.9)
    load_optimizer(again, tmp_path, named(second))
    assert again.param_groups[0]["param_names"] == ["layer.2", "layer.1", "layer.0"]
    assert torch.equal(again.state[second[2]]["momentum_buffer"], optimizer.state[first[2]]["momentum_buffer"])


def test_state_that_belongs_to_no_parameter_comes_back(tmp_path):
    parameters = make_parameters(torch.float32)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.state["total"] = torch.tensor(3.0)
    save_optimizer(optimizer, tmp_path)
    again, _ = resumed(lambda parameters: torch.optim.SGD(parameters, lr=0.1), parameters, tmp_path)
    assert again.state["total"] == 3.0


@pytest.mark.parametrize("odd", [float("nan"), threading.Lock(), [1, [2, object]]], ids=["nan", "lock", "class"])
def test_settings_of_any_kind_are_copied_as_far_as_they_are_plain(odd):
    optimizer = torch_adamw(make_parameters(torch.float32))
    optimizer.param_groups[0]["odd"] = odd
    settings = settings_of(optimizer)
    assert settings[0]["lr"] == 1e-3
    assert ("odd" in settings[0]) == isinstance(odd, float)


def test_a_setting_that_is_no_number_is_no_changed_setting(tmp_path):
    def build(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.param_groups[0]["limit"] = float("nan")
        return optimizer

    parameters = make_parameters(torch.float32)
    optimizer = build(parameters)
    optimizer.built_with = settings_of(optimizer)
    optimizer.param_groups[0]["limit"] = 5.0
    save_optimizer(optimizer, tmp_path)
    again, _ = resumed(build, parameters, tmp_path)
    assert again.param_groups[0]["limit"] == 5.0


@pytest.mark.parametrize("stranger", [np.float64(3), np.zeros(2), Stranger()], ids=["scalar", "array", "object"])
def test_no_state_is_saved_that_could_not_be_read(tmp_path, stranger):
    optimizer, parameters = trained(torch_adamw, torch.float32)
    optimizer.state[parameters[0]]["later"] = stranger
    with pytest.raises(CheckpointError, match="keeps something that a checkpoint cannot hold"):
        save_optimizer(optimizer, tmp_path)


@pytest.mark.parametrize("length", [0, 100, -9])
def test_a_cut_file_is_refused(length, tmp_path):
    optimizer, parameters = trained(adamw_bf16, torch.float32)
    save_optimizer(optimizer, tmp_path)
    path = tmp_path / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="cannot be read"):
        resumed(adamw_bf16, parameters, tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        resumed(adamw_bf16, make_parameters(torch.float32), tmp_path)
