"""Shared parts of the small model's trainings: resumed state, averaged weights, the learning rate's schedule."""

import pytest
import torch
from recipe_modules import recipe_modules
from torch import nn

COURSE = {"peak": 2.0, "warmup": 10, "decay_from": 0.6}


@pytest.fixture(scope="module")
def training():
    return recipe_modules().training


def modules(seed):
    torch.manual_seed(seed)
    return nn.ModuleDict({"first": nn.Linear(5, 7), "second": nn.Sequential(nn.Linear(7, 3), nn.LayerNorm(3))})


@pytest.fixture
def trained(training):
    """Return modules after some steps, and their average."""
    parts = modules(0)
    average = training.Average(parts, 0.9)
    for _ in range(5):
        with torch.no_grad():
            for parameter in parts.parameters():
                parameter.add_(1)
        average.update()
    return parts, average


def save(training, folder, trained, name="vae"):
    parts, average = trained
    training.save_state(folder, name, dict(parts.items()), average, {"steps": 5})


def test_weights_and_facts_come_back(training, trained, tmp_path):
    save(training, tmp_path, trained)
    tensors, facts = training.read_state(tmp_path, "vae")
    again = modules(1)
    training.restore(tensors, dict(again.items()), training.Average(again, 0.9))
    assert facts == {"steps": 5}
    torch.testing.assert_close(again.state_dict(), trained[0].state_dict(), rtol=0, atol=0)


def test_the_average_comes_back_to_the_precision_of_bfloat16(training, trained, tmp_path):
    save(training, tmp_path, trained)
    again = modules(1)
    average = training.Average(again, 0.9)
    training.restore(training.read_state(tmp_path, "vae")[0], dict(again.items()), average)
    expected = [value.bfloat16().float() for value in trained[1].average]
    torch.testing.assert_close(average.average, expected, rtol=0, atol=0)


def test_a_restored_average_continues_with_its_full_decay(training, trained, tmp_path):
    save(training, tmp_path, trained)
    again = modules(1)
    average = training.Average(again, 0.9)
    training.restore(training.read_state(tmp_path, "vae")[0], dict(again.items()), average)
    before = average.average[0].clone()
    average.update()
    torch.testing.assert_close(average.average[0], 0.9 * before + 0.1 * again["first"].weight)


def test_only_averaged_weights_are_exported(training, trained, tmp_path):
    save(training, tmp_path, trained)
    again = modules(1)
    training.load_averaged(training.read_state(tmp_path, "vae")[0], dict(again.items()))
    expected = [value.bfloat16().float() for value in trained[1].average]
    torch.testing.assert_close([p.data for p in again.parameters()], expected, rtol=0, atol=0)


def test_state_holds_weights_and_average_but_no_optimizer(training, trained, tmp_path):
    save(training, tmp_path, trained)
    tensors, _ = training.read_state(tmp_path, "vae")
    names = [name for name, _ in trained[0].named_parameters()]
    assert set(tensors) == {f"{kind}.{name}" for kind in ("raw", "ema") for name in names}


def test_large_state_is_split_and_the_shards_of_an_older_one_go(training, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SHARD_BYTES", 100)
    save(training, tmp_path, trained)
    many = len(list(tmp_path.glob("vae-*.safetensors")))
    monkeypatch.setattr(training, "SHARD_BYTES", 10_000)
    save(training, tmp_path, trained)
    assert many > 2
    assert len(list(tmp_path.glob("vae-*.safetensors"))) == 1


def test_a_folder_without_state_gives_none(training, tmp_path):
    assert training.read_state(tmp_path, "vae") == ({}, {})


def test_swapping_with_the_average_twice_is_nothing(training, trained):
    parts, average = trained
    before = [parameter.detach().clone() for parameter in parts.parameters()]
    average.swap()
    assert not torch.equal(parts["first"].weight, before[0])
    average.swap()
    torch.testing.assert_close([p.data for p in parts.parameters()], before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("step", "fraction", "rate"),
    [(0, 0.0, 0.2), (4, 0.0, 1.0), (9, 0.01, 2.0), (500, 0.6, 2.0), (500, 0.8, 1.02), (500, 1.0, 0.04)],
)
def test_the_learning_rate_rises_stays_and_falls_to_two_percent(training, step, fraction, rate):
    assert training.learning_rate(step, fraction, **COURSE) == pytest.approx(rate)


def test_the_learning_rate_does_not_fall_in_a_call_that_another_follows(training):
    assert training.learning_rate(500, 1.0, **COURSE | {"decay_from": 1.0}) == 2.0


def test_muon_moves_the_blocks_matrices_and_adamw_all_else(training):
    student = nn.Module()
    student.transformer = nn.Module()
    student.transformer.single_transformer_blocks = nn.ModuleList([nn.Linear(4, 4)])
    student.transformer.proj_out = nn.Linear(4, 4)
    student.text_encoder = nn.Embedding(3, 4)
    adamw, muon = training.build_optimizers("muon", student, 1e-3)
    moved = [[id(p) for group in optimizer.param_groups for p in group["params"]] for optimizer in (adamw, muon)]
    assert moved[1] == [id(student.transformer.single_transformer_blocks[0].weight)]
    assert sorted(moved[0] + moved[1]) == sorted(id(p) for p in student.parameters())
