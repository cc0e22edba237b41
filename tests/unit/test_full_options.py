"""``model_type full`` in the config: what it refuses, what it notes, and what its weights are."""

import json

import pytest
import torch
from config_runs import error_of, plan, run_values, target_set
from torch import nn

from difftrain.errors import CheckpointError
from difftrain.model.whole_model import write_model
from difftrain.model.whole_model.full import Full
from difftrain.model.whole_model.write_model import write_shards
from difftrain.testing import TinyFamily


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_run_trains_the_model_and_options_of_adapters_are_noted():
    found = plan(run_values(model_type="full", lora_rank=8, lora_type="lycoris", learning_rate=1e-5))
    assert type(found.adapter) is Full
    assert "lora_rank: no effect, it is an option of 'standard', which this run does not use" in found.notes
    assert "lora_type lycoris: no effect, model_type is full" in found.notes
    assert not any("learning_rate" in note for note in found.notes)


def test_the_choice_of_an_adapters_modules_is_noted_as_having_no_effect():
    noted = "flux_lora_target: no effect, it chooses the modules of an adapter, and all weights are trained"
    assert noted in plan(run_values(model_type="full", flux_lora_target="all+ffs")).notes
    assert noted not in plan(run_values(model_type="full", flux_lora_target="all")).notes
    assert noted not in plan(run_values(flux_lora_target="all+ffs")).notes


def test_the_usual_rate_of_a_model_is_a_tenth_of_an_adapters():
    (note,) = (text for text in plan(run_values(model_type="full", learning_rate=2e-4)).notes if "is high" in text)
    assert "3e-06 to 0.0001 is usual for a whole model with optimizer 'adamw_bf16'" in note


def test_everything_that_needs_frozen_weights_is_refused_at_once():
    said = error_of(
        run_values(model_type="full", base_model_precision="int8-quanto", fuse_qkv_projections=True, blocks_to_swap=3)
    )
    assert "base_model_precision 'int8-quanto': model_type 'full' trains these weights" in said
    assert 'set base_model_precision to "no_change"' in said
    assert "fuse_qkv_projections: it puts frozen layers together" in said
    assert "blocks_to_swap 3: only frozen weights wait" in said


def test_sets_that_need_the_base_beside_the_model_are_refused():
    others = target_set(id="others", is_regularisation_data=True)
    said = error_of(run_values(model_type="full"), [target_set(), others])
    assert "is_regularisation_data = true" in said
    assert "model_type 'full' has none" in said
    assert "use lora_type lycoris or standard" in said


def test_the_name_of_the_other_option_is_said():
    said = error_of(run_values(lora_type="full"))
    assert "lora_type 'full' is no kind of adapter; set model_type to 'full' instead" in said


class Kept(TinyFamily):
    def keep_in_float32(self):
        return ("1", "2.bias")


def model():
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    return found.requires_grad_(False)


def test_all_weights_are_trained_in_the_runs_format_but_for_those_that_stay_in_float32():
    found = model()
    Full().adapt(found, Kept(), torch.bfloat16)
    assert all(weight.requires_grad for weight in found.parameters())
    kept = {name for name, weight in found.named_parameters() if weight.dtype == torch.float32}
    assert kept == {"1.weight", "1.bias", "2.bias"}


def test_the_state_has_tables_that_are_not_trained_and_returns_exactly():
    found, other = model(), model()
    with torch.no_grad():
        for tensor in found.state_dict().values():
            tensor.add_(1)
    Full().load_state(other, Full().state(found))
    assert torch.equal(other.state_dict()["3.running_mean"], torch.ones(2))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("change", [{"0.weight": torch.zeros(3, 3)}, {"9.weight": torch.zeros(1)}])
def test_weights_of_another_model_are_refused_by_name(change):
    found = model()
    with pytest.raises(CheckpointError, match=f"1 weights of the checkpoint are not those .*: {next(iter(change))}"):
        Full().load_state(found, {**Full().state(found), **change})


def test_files_are_no_larger_than_asked_and_read_in_the_order_of_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(write_model, "SHARD_BYTES", 100)
    weights = {f"w{number}": torch.full((10,), float(number)) for number in range(5)}
    (tmp_path / "transformer").mkdir()
    write_shards(weights.items(), tmp_path / "transformer")
    index = json.loads((tmp_path / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    assert index["metadata"]["total_size"] == 200
    read = Full().read(tmp_path, "transformer")
    assert read.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read.items())
