"""What a run advises that ends because memory ran out."""

import pytest
import torch
from config_runs import pair, plan, run_values, target_set

from difftrain.model.precision.quanto import QuantoInt8
from difftrain.training.out_of_memory import out_of_memory


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def advice(**options):
    """Return the hint of a run with these options, part by part."""
    problem, hint = out_of_memory(plan(run_values(**options)), 3, torch.OutOfMemoryError("CUDA\nmore")).split("\n")
    assert problem == "out of memory in step 3: CUDA"
    return hint.removeprefix("hint: ").split(", or ")


def test_only_what_the_config_does_not_do_yet_is_advised():
    assert advice() == ["set base_model_precision, for example int8-matmul", "lower resolution", "lower lora_rank"]
    assert advice(gradient_checkpointing=False, train_batch_size=2, base_model_precision="int8-matmul") == [
        "set gradient_checkpointing = true",
        "lower train_batch_size, now 2",
        "lower resolution",
        "lower lora_rank",
    ]


def test_the_set_with_the_largest_batches_is_named():
    def said(*entries, **options):
        config = plan(run_values(**options), [*pair(), *entries])
        return str(out_of_memory(config, 3, torch.OutOfMemoryError("CUDA")))

    own = target_set(id="more", instance_data_dir="more", train_batch_size=4)
    assert "lower train_batch_size of dataset 'more', now 4, or " in said(own, train_batch_size=2)
    assert "lower train_batch_size, now 6, or " in said(own, train_batch_size=6)
    assert "train_batch_size" not in said({**own, "train_batch_size": 1})


def test_weights_that_cannot_be_swapped_should_be_others_of_their_size(monkeypatch):
    assert "base_model_precision" not in str(advice(base_model_precision="int8-quanto"))
    monkeypatch.setattr(QuantoInt8, "can_compile", False)
    said = advice(base_model_precision="int8-quanto")[0]
    assert said.startswith("set base_model_precision to ")
    assert (
        "int8-torchao or fp8-torchao or fp8-matmul or int8-matmul, whose blocks can wait in the host's memory" in said
    )
    assert said.endswith("; those of int8-quanto cannot")


def test_a_precision_that_this_card_lacks_is_not_advised(monkeypatch):
    monkeypatch.setattr(QuantoInt8, "can_compile", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    said = advice(base_model_precision="int8-quanto")[0]
    assert "int8-matmul" in said
    assert "fp8-matmul" not in said
