"""What `base_model_precision: auto` becomes, on cards that a test makes up."""

from types import SimpleNamespace

import pytest
import torch
from config_runs import plan, run_values
from torch import nn

from difftrain.model.precision.quanto import QuantoInt8
from difftrain.training.settle_precision import settle_precision
from difftrain.types import ModelLocation
from difftrain_flux.family import FluxFamily

GIB = 2**30
PLACE = ModelLocation(name="x", identity="x", path=None)
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settle(monkeypatch):
    """Settle a run on a card of some capability and free GiB; the weights need 10 GiB in bfloat16."""
    monkeypatch.setattr(FluxFamily, "empty_denoiser", lambda *_: nn.Linear(5 * 2**18, 2**12, bias=False, device="meta"))

    def run(capability=(8, 9), free=16, *, device=CUDA, before=None, cap=1.0, **options):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device.type == "cuda")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda *_: cap)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
        said = []
        accelerator = SimpleNamespace(device=device, num_processes=1)
        saved = SimpleNamespace(config={"base_model_precision": before}) if before else None
        given = plan(run_values(base_model_precision="auto", **options))
        settled = settle_precision(given, PLACE, accelerator, saved, SimpleNamespace(say=said.append))
        (text,) = said
        name = settled.config.base_model_precision
        assert text.startswith(f"base_model_precision auto: {name}, ")
        assert (settled.quantizer.name if settled.quantizer else "no_change") == name
        return name, text

    return run


@pytest.mark.parametrize(
    ("capability", "name"),
    [((12, 0), "fp8-matmul"), ((8, 9), "fp8-matmul"), ((8, 6), "int8-matmul"), ((7, 5), "int8-quanto")],
)
def test_the_card_decides_the_format(settle, capability, name):
    chosen, text = settle(capability)
    assert chosen == name
    assert f"compute capability {capability[0]}.{capability[1]}; the weights need 10.0 GiB in bfloat16" in text
    assert "more than 50% of the 16.0 GiB that are free" in text


@pytest.mark.parametrize(
    ("free", "options", "name"),
    [
        (20, {}, "no_change"),
        (19, {}, "fp8-matmul"),
        (39, {"gradient_checkpointing": False}, "fp8-matmul"),
        (40, {"gradient_checkpointing": False}, "no_change"),
        (20, {"gradient_checkpointing": "auto"}, "no_change"),
        (39, {"mixed_precision": "no"}, "fp8-matmul"),
        (80, {"cap": 0.2}, "fp8-matmul"),
    ],
)
def test_weights_that_fit_easily_stay_as_they_are(settle, free, options, name):
    assert settle(free=free, **options)[0] == name


@pytest.mark.parametrize("option", [{"blocks_to_swap": 3}, {"dynamo_backend": "inductor"}], ids=str)
def test_only_formats_that_do_what_else_is_asked_are_taken(settle, option, monkeypatch):
    assert settle((8, 6), **option)[0] == "int8-matmul"
    assert settle((7, 5), **option)[0] == "int8-quanto"
    monkeypatch.setattr(QuantoInt8, "can_compile", False)
    name, text = settle((7, 5), **option)
    assert name == "no_change"
    assert "no other works here" in text


def test_the_cpu_trains_unchanged_weights(settle):
    assert settle(device=CPU) == (
        "no_change",
        "base_model_precision auto: no_change, for no format is faster on the CPU",
    )


def test_a_resumed_run_keeps_its_format_where_it_works(settle):
    assert settle((12, 0), before="int8-matmul") == (
        "int8-matmul",
        "base_model_precision auto: int8-matmul, as in the checkpoint",
    )
    assert settle(free=13, before="no_change")[0] == "no_change"
    assert settle(device=CPU, before="fp8-matmul")[0] == "fp8-matmul"


def test_a_resumed_run_says_what_its_card_cannot(settle):
    name, text = settle((8, 6), before="fp8-matmul")
    assert name == "int8-matmul"
    assert text.endswith("; the checkpoint was trained with fp8-matmul, which does not work here")
    assert settle(free=12, before="no_change")[0] == "fp8-matmul"


def test_options_of_the_format_are_used(settle, monkeypatch):
    given = plan(run_values(base_model_precision="auto", int8_rotation=True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (GIB, GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda *_: 1.0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
    accelerator = SimpleNamespace(device=CUDA, num_processes=1)
    settled = settle_precision(given, PLACE, accelerator, None, SimpleNamespace(say=lambda text: None))
    assert settled.quantizer.int8_rotation


def test_a_named_precision_is_left_alone():
    given = plan(run_values(base_model_precision="int8-quanto"))
    assert settle_precision(given, PLACE, None, None, None) is given
