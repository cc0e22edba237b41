"""A run whose queries, keys and values are one product trains and saves the same adapter."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from long_runs import changed
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from wiring import Trials

import rounding_plugin
from conftest import EditPairs, run_in
from difftrain.model.fused.fused_layers import FusedLinear, LinearPart
from difftrain.output.console import ConsoleReporter
from difftrain.planning.model_plan import plan_model
from difftrain.training.adapted_model import load_adapted

ADAPTER = "pytorch_lora_weights.safetensors"
ROUNDING = rounding_plugin.__file__
PLAIN = {"plugins": "./plain_sgd.py", "optimizer": "plain-sgd", "learning_rate": 0.1, "max_train_steps": 4}
PACKAGES = {"int8-torchao": "torchao", "fp8-torchao": "torchao", "nf4-bnb": "bitsandbytes"}
PRODUCTS = 2 * 2 + 2
"""Of the built-in model: two in each of two double blocks, one in each of two single blocks."""
OWN_ADAPTER = '''
from typing import ClassVar

from difftrain import hookimpl
from difftrain.model.low_rank.lora import Lora


class Own(Lora):
    """An adapter that says nothing of products."""

    name: ClassVar[str] = "own"
    takes_products: ClassVar[bool] = False


@hookimpl
def difftrain_adapters():
    return (Own,)
'''


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train on four pairs, fused or not."""
    folder = tmp_path_factory.mktemp("fused")
    pairs = EditPairs(folder)
    return Trials(folder, (*pairs.kontext, "--data_backend_config", pairs(count=4), "--max_train_steps", 2))


def products(run):
    return [part for part in run.state.bare_denoiser.modules() if isinstance(part, FusedLinear)]


def check_same(fused, plain, tolerance=1e-5):
    """Check that two runs are one training, and only one of them is fused."""
    assert len(products(fused)) == PRODUCTS
    assert not products(plain)
    assert torch.equal(fused.weights[0], plain.weights[0])
    assert plain.moved[-1] > 0
    for ours, theirs in zip(fused.results, plain.results, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=10 * tolerance)
    moved = plain.weights[-1] - plain.weights[0]
    assert (fused.weights[-1] - plain.weights[-1]).norm() < 10 * tolerance * moved.norm()


def test_fuse_qkv_projections_trains_the_same_adapter(train):
    fused, plain = train(**PLAIN, fuse_qkv_projections="true"), train(**PLAIN)
    check_same(fused, plain)
    assert "fuse_qkv_projections: 6 of 6 groups of layers run as one product each" in fused.ended.err
    for name in (ADAPTER, "checkpoint-4/resume/adapter.safetensors"):
        ours, theirs = load_file(fused.output / name), load_file(plain.output / name)
        assert list(ours) == list(theirs)
        assert all(ours[key].shape == tensor.shape for key, tensor in theirs.items())
    trained = [name for name, part in fused.state.bare_denoiser.named_parameters() if part.requires_grad]
    assert all(fused.state.bare_denoiser.get_parameter(name).abs().max() > 0 for name in trained)  # B is zero at first
    assert any(".to_q.lora_B" in name for name in trained)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": "true"},
        {"dynamo_backend": "aot_eager"},
        {"dynamo_backend": "aot_eager", "gradient_checkpointing": "true"},
        {"flux_lora_target": "all+ffs"},
        {"flux_lora_target": "context"},
        {"lora_dropout": 0.5},
        {"blocks_to_swap": 2},
        {"train_batch_size": 2, "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_it_goes_together_with_other_options(train, options):
    others = {key: value for key, value in options.items() if key != "dynamo_backend"}
    check_same(train(**PLAIN, **options, fuse_qkv_projections="true"), train(**PLAIN, **others), 1e-4)


COMPILED = {"dynamo_backend": "aot_eager", "gradient_checkpointing": "true"}


@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("fp8-matmul", {}), ("int8-matmul", COMPILED), *((name, {}) for name in PACKAGES)],
    ids=str,
)
def test_it_goes_together_with_precisions(train, precision, compiled):
    pytest.importorskip(PACKAGES.get(precision, "torch"))
    options = {**PLAIN, "base_model_precision": precision}
    fused, plain = train(**options, **compiled, fuse_qkv_projections="true"), train(**options)
    # the gradients of 8-bit products are rounded together
    check_same(fused, plain, 1e-4 if precision in PACKAGES else 0.01)
    parts = [part for part in fused.state.bare_denoiser.modules() if isinstance(part, LinearPart)]
    assert {part.weight.dtype for part in parts} == {torch.int8}


@pytest.mark.parametrize("first", ["true", "false"])
def test_a_checkpoint_goes_on_with_fused_layers(train, first):
    whole = train(max_train_steps=4, fuse_qkv_projections="true")
    output = train.folder / f"halved-{first}"
    half = train(max_train_steps=2, fuse_qkv_projections=first, output_dir=output)
    resumed = train(max_train_steps=4, fuse_qkv_projections="true", output_dir=output)
    assert len(half.results) == len(resumed.results) == 2
    assert torch.equal(resumed.weights[0], half.weights[-1])
    if first == "true":
        assert torch.equal(resumed.weights[-1], whole.weights[-1])
    else:
        assert "fuse_qkv_projections false -> true" in resumed.ended.err
        assert len(products(resumed)) == PRODUCTS


def test_validation_images_are_the_same(train):
    drawing = {"num_eval_images": 1, "validation_num_inference_steps": 4, "validation_resolution": 64}
    options = {**PLAIN, "max_train_steps": 1, "validation_steps": 1, **drawing}
    pictures = []
    for fused in ("true", "false"):
        output = train(**options, fuse_qkv_projections=fused).output
        files = sorted(path for path in output.glob("validation/step-*/*.png") if path.name != "sheet.png")
        assert files
        pictures.append(np.stack([np.asarray(Image.open(path), dtype=float) for path in files]))
    assert abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"base_model_precision": "own-8bit", "plugins": ROUNDING},
            "fuse_qkv_projections: weights of base_model_precision 'own-8bit' cannot be fused; those of int8-quanto, "
            "fp8-quanto, fp8uz-quanto, int8-torchao, fp8-torchao, fp8-matmul, int8-matmul can, or set "
            "fuse_qkv_projections to false",
        ),
        (
            {"base_model_precision": "own-4bit", "plugins": ROUNDING},
            "those of int4-quanto, nf4-bnb, fp4-bnb can, or set fuse_qkv",
        ),
        (
            {"plugins": "./own_adapter.py", "lora_type": "own"},
            "fuse_qkv_projections: adapters of lora_type 'own' do not take products that are computed together; use "
            "lora_type lycoris or standard, or set fuse_qkv_projections to false",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_found_in_the_config(train, options, words):
    (train.folder / "own_adapter.py").write_text(OWN_ADAPTER)
    ended = run_in(
        train.folder, *changed(train.arguments, **options, fuse_qkv_projections="true", output_dir="refused")
    )
    assert ended.status == 2
    assert words in ended.err
    assert "scan" not in ended.err


def test_a_family_that_names_no_such_layers_is_found_in_the_config(train):
    (train.folder / "another.py").write_text(
        "from difftrain import hookimpl\nfrom difftrain.testing import TinyFamily, TinyFlavour\n\n"
        "@hookimpl\ndef difftrain_model_families():\n    return (TinyFamily,)\n\n"
        "@hookimpl\ndef difftrain_model_flavours():\n    return (TinyFlavour,)\n"
    )
    flags = {"plugins": "./another.py", "model": "tiny-test", "flavour": "base", "fuse_qkv_projections": "true"}
    ended = run_in(train.folder, *changed(train.arguments, **flags, output_dir="refused"))
    assert ended.status == 2
    assert "fuse_qkv_projections: model_family 'tiny-test' names no layers that share their input" in ended.err


def test_a_precision_that_auto_chose_may_leave_layers_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"model_family": "flux", "base_model_precision": "own-8bit", "plugins": ROUNDING}
    plan = plan_model(None, {**flags, "pretrained_model_name_or_path": "tiny-random"})
    plan = replace(plan, config=plan.config.model_copy(update={"fuse_qkv_projections": True}))
    location = plan.family.locate("tiny-random", plan.flavour)
    reporter = ConsoleReporter(Console(file=(said := io.StringIO()), width=200))
    denoiser = load_adapted(plan, location, device=torch.device("cpu"), adapter_dtype=torch.float32, reporter=reporter)
    assert not any(isinstance(part, FusedLinear) for part in denoiser.modules())
    assert "weights of own-8bit cannot be fused; fuse_qkv_projections has no effect" in said.getvalue()
