"""Options of a run change how it trains: length, batches, optimizer, learning rate, adapter, memory."""

import json
import math
from collections import Counter

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformerBlock
from long_runs import changed, checkpoints
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from wiring import Trials

import rounding_plugin
from conftest import EditPairs, read_metrics, run_in
from difftrain.model.precision.weight_only_linear import Int8StoredLinear, WeightOnlyLinear
from difftrain.training import adapted_model

ADAPTER = "pytorch_lora_weights.safetensors"
ROUNDING = rounding_plugin.__file__
PLAIN = {"plugins": "./plain_sgd.py", "optimizer": "plain-sgd", "learning_rate": 0.01}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train two steps on four pairs."""
    folder = tmp_path_factory.mktemp("training")
    pairs = EditPairs(folder)
    return Trials(folder, (*pairs.kontext, "--data_backend_config", pairs(count=4), "--max_train_steps", 2))


def adapters(run):
    """Return the adapted layers of the trained model, by name."""
    return {name: part for name, part in run.state.bare_denoiser.named_modules() if isinstance(part, LoraLayer)}


def rates(run):
    """Return the learning rate that moved the weights in each step, for plain SGD with unclipped gradients."""
    return [moved / result.grad_norm for moved, result in zip(run.moved, run.results, strict=True)]


# length, batches, order


def test_max_train_steps_is_how_many_updates_are_made(train):
    assert len(train().results) == 2
    assert all(moved > 0 for moved in train().moved)


def test_num_train_epochs_shows_every_sample_as_often(train):
    run = train(max_train_steps=0, num_train_epochs=3)
    assert set(Counter(run.keys).values()) == {3}
    assert [result.epoch for result in run.results] == [0] * 4 + [1] * 4 + [2] * 4


def test_train_batch_size_and_accumulation_make_the_step(train):
    run = train(train_batch_size=2, gradient_accumulation_steps=2)
    assert [len(fed.batch.latents) for fed in run.fed] == [2] * 4
    assert [result.samples for result in run.results] == [4, 4]
    assert set(Counter(run.keys[:4]).values()) == {1}


def test_accumulated_gradients_are_those_of_one_batch(train):
    """At one noise level the four samples give one gradient, however they are divided."""
    fixed = {**PLAIN, "flow_sigmoid_scale": 1e-6, "vae_cache_sample": "mean", "max_grad_norm": 0, "max_train_steps": 1}
    parts = train(train_batch_size=1, gradient_accumulation_steps=4, **fixed)
    losses = [(fed.prediction.float() - fed.noisy.target).square().mean().item() for fed in parts.fed]
    assert parts.results[0].loss == pytest.approx(sum(losses) / 4, rel=1e-5)
    single = [train(train_batch_size=1, **fixed).results[0].grad_norm, parts.results[0].grad_norm]
    assert single[1] < single[0]  # the mean of four directions is shorter than one


def test_every_step_continues_where_the_last_one_ended(train):
    run = train(max_train_steps=6)
    assert set(Counter(run.keys[:4]).values()) == {1}
    assert len(set(run.keys[4:])) == 2
    assert [line["epoch"] for line in read_metrics(run.output)] == [0, 0, 0, 0, 1, 1]


def test_seed_gives_order_and_first_weights(train):
    first, other = train(max_train_steps=6), train(seed=7, max_train_steps=6)
    assert first.keys != other.keys
    assert not torch.equal(first.weights[0], other.weights[0])


def test_the_model_trains_in_training_mode(train):
    assert all(fed.training for fed in train().fed)


# optimizer


def test_max_grad_norm_limits_how_far_the_weights_move(train):
    run = train(max_grad_norm=0.001, **PLAIN)
    assert all(result.grad_norm > 0.01 for result in run.results)
    assert run.moved == pytest.approx([0.01 * 0.001] * 2, rel=1e-3)


def test_max_grad_norm_of_zero_and_one_that_is_not_reached_change_nothing(train):
    free, high = train(max_grad_norm=0, **PLAIN), train(max_grad_norm=1e6, **PLAIN)
    assert torch.equal(free.weights[-1], high.weights[-1])
    assert rates(free) == pytest.approx([0.01] * 2, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"lr_scheduler": "constant"}, [1, 1, 1, 1]),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 2}, [1 / 3, 2 / 3, 1, 1]),
        ({"lr_scheduler": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"lr_scheduler": "cosine"}, [0.5 * (1 + math.cos(math.pi * part / 4)) for part in range(4)]),
    ],
)
def test_the_schedule_is_what_moves_the_weights(train, options, factors):
    run = train(max_grad_norm=0, max_train_steps=4, **PLAIN, **options)
    assert rates(run) == pytest.approx([0.01 * factor for factor in factors], rel=2e-3)
    assert [line["learning_rate"] for line in read_metrics(run.output)] == pytest.approx(
        [0.01 * factor for factor in factors]
    )


def test_optimizer_config_reaches_the_groups_that_step(train):
    run = train(optimizer_config='{"weight_decay": 0.25, "eps": 1e-6, "betas": [0.5, 0.75]}')
    (group,) = run.state.optimizer.param_groups
    assert (group["weight_decay"], group["eps"], group["beta1"], group["beta2"]) == (0.25, 1e-6, 0.5, 0.75)
    assert not torch.equal(run.weights[-1], train().weights[-1])


def test_optimizer_names_the_rule_that_moves_the_weights(train):
    lion = train(optimizer="optimi-lion", learning_rate=2e-4, max_train_steps=1)
    distances = (lion.weights[1] - lion.weights[0]).abs()
    moved = distances[distances > 0]
    torch.testing.assert_close(moved, torch.full_like(moved, 2e-4), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"mixed_precision": "bf16"}, torch.bfloat16),
        ({"mixed_precision": "bf16", "optimizer": "optimi-lion", "learning_rate": 1e-5}, torch.float32),
        ({"mixed_precision": "no"}, torch.float32),
    ],
)
def test_trained_weights_have_the_dtype_that_the_optimizer_is_made_for(train, options, dtype):
    assert {weight.dtype for weight in train(**options).state.trained} == {dtype}


# adapter


def test_lora_rank_and_alpha_are_those_of_every_adapted_layer(train):
    run = train(lora_rank=2, lora_alpha=3)
    layers = adapters(run).values()
    assert {layer.lora_A["default"].out_features for layer in layers} == {2}
    assert {layer.scaling["default"] for layer in layers} == {1.5}
    assert {layer.scaling["default"] for layer in adapters(train()).values()} == {1.0}


def test_the_saved_adapter_has_alpha_folded_in(train):
    run = train(lora_rank=2, lora_alpha=3)
    saved = load_file(run.output / ADAPTER)
    for name, layer in adapters(run).items():
        up = layer.lora_B["default"].weight.detach() * 1.5
        torch.testing.assert_close(saved[f"transformer.{name}.lora_B.weight"], up)
        torch.testing.assert_close(saved[f"transformer.{name}.lora_A.weight"], layer.lora_A["default"].weight.detach())
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if ".lora_B." in name)


def test_lora_dropout_drops_in_training(train):
    run = train(lora_dropout=0.5)
    assert {layer.lora_dropout["default"].p for layer in adapters(run).values()} == {0.5}
    assert all(isinstance(layer.lora_dropout["default"], nn.Identity) for layer in adapters(train()).values())
    # B is zero at first, so the first loss is the same and only its gradient differs
    assert run.results[0].loss == train().results[0].loss
    assert run.results[0].grad_norm != train().results[0].grad_norm


def test_flux_lora_target_names_what_is_adapted(train):
    everything, few = adapters(train()), adapters(train(flux_lora_target="context"))
    assert set(few) < set(everything)
    assert all(".attn.add_" in name or ".attn.to_add_out" in name for name in few)
    assert any(".ff." in name for name in adapters(train(flux_lora_target="all+ffs")))


def test_nothing_but_the_adapter_is_trained(train):
    model = train().state.bare_denoiser
    assert all((".lora_" in name) == parameter.requires_grad for name, parameter in model.named_parameters())


# memory


@pytest.mark.parametrize(("option", "times"), [("true", 2), ("false", 1)])
def test_gradient_checkpointing_computes_every_block_twice(train, monkeypatch, option, times):
    calls = Counter()
    forward = FluxTransformerBlock.forward

    def counted(block, *arguments, **options):
        calls[torch.is_grad_enabled()] += 1
        return forward(block, *arguments, **options)

    monkeypatch.setattr(FluxTransformerBlock, "forward", counted)
    run = train(gradient_checkpointing=option, max_train_steps=3)
    blocks = len(run.state.bare_denoiser.transformer_blocks)
    assert calls[True] == 3 * blocks * times


def test_gradient_checkpointing_changes_no_weight(train):
    with_it, without = train(gradient_checkpointing="true"), train(gradient_checkpointing="false")
    torch.testing.assert_close(with_it.weights[-1], without.weights[-1])


@pytest.mark.parametrize("backend", ["no", "aot_eager"])
def test_gradient_checkpointing_interval_recomputes_every_so_many_blocks(train, monkeypatch, backend):
    from difftrain.model import tuned_blocks

    recomputed = Counter()
    checkpoint = tuned_blocks.checkpoint

    def counted(forward, block, *arguments, **options):
        recomputed[type(block).__name__] += 1
        return checkpoint(forward, block, *arguments, **options)

    if backend == "no":  # a compiled forward calls it only when traced
        monkeypatch.setattr(tuned_blocks, "checkpoint", counted)
    options = {"gradient_checkpointing_interval": 2, "dynamo_backend": backend}
    some = train(gradient_checkpointing="true", **options)
    if backend == "no":
        assert recomputed == {"FluxTransformerBlock": 2, "FluxSingleTransformerBlock": 2}  # one of two, in two steps
    none = train(gradient_checkpointing="false")
    # compiled, some processors round otherwise, and Adam makes much of gradients that are nearly zero
    apart = (some.weights[-1] - none.weights[-1]).norm() / (none.weights[-1] - none.weights[0]).norm()
    assert apart < (1e-5 if backend == "no" else 1e-3)


def test_base_model_precision_stores_the_inner_layers_in_eight_bits(train):
    run = train(base_model_precision="int8-quanto")
    model = run.state.bare_denoiser
    assert all(isinstance(layer.base_layer, Int8StoredLinear) for layer in adapters(run).values())
    assert type(model.x_embedder) is type(model.proj_out) is nn.Linear
    assert all(moved > 0 for moved in run.moved)


STORED = {"int8-torchao": "torchao", "fp8-torchao": "torchao", "nf4-bnb": "bitsandbytes"}


@pytest.mark.parametrize("precision", STORED)
def test_a_precision_of_another_package_trains_an_adapter_that_resumes(train, precision):
    pytest.importorskip(STORED[precision])
    exact, run = train(max_train_steps=4), train(base_model_precision=precision, max_train_steps=4)
    layers = [layer.base_layer for layer in adapters(run).values()]
    assert layers
    assert all(isinstance(layer, WeightOnlyLinear) for layer in layers)
    for ours, true in zip(run.results, exact.results, strict=True):
        assert ours.loss == pytest.approx(true.loss, rel=0.05)
        assert ours.loss != true.loss
    assert all(moved > 0 for moved in run.moved)
    halved = run.output.with_name(f"{precision}-halved")
    half = train(base_model_precision=precision, max_train_steps=2, output_dir=halved)
    resumed = train(base_model_precision=precision, max_train_steps=4, output_dir=halved)
    assert "resumed" in resumed.ended.err
    assert len(half.results) == len(resumed.results) == 2
    assert torch.equal(resumed.weights[-1], run.weights[-1])
    saved = load_file(run.output / ADAPTER)
    assert {name.rsplit(".", 2)[1] for name in saved} == {"lora_A", "lora_B"}
    assert saved.keys() == load_file(exact.output / ADAPTER).keys()


@pytest.mark.parametrize("precision", ["int8-quanto", "int8-matmul", *STORED])
def test_weights_may_be_quantised_on_the_cpu(train, precision, monkeypatch):
    pytest.importorskip(STORED.get(precision, "torch"))
    asked = []
    load = adapted_model.load_denoiser

    def watched(*arguments, quantize_on, **options):
        asked.append(quantize_on)
        return load(*arguments, quantize_on=quantize_on, **options)

    monkeypatch.setattr(adapted_model, "load_denoiser", watched)
    run = train(base_model_precision=precision, quantize_via="cpu", max_train_steps=1)
    assert asked == [torch.device("cpu")]
    assert run.moved[0] > 0


def test_auto_keeps_the_precision_of_its_checkpoint(train):
    folder = train.folder / "kept"
    train(base_model_precision="int8-matmul", max_train_steps=1, output_dir=folder)
    resumed = train(base_model_precision="auto", max_train_steps=2, output_dir=folder)
    assert "base_model_precision auto: int8-matmul, as in the checkpoint" in resumed.ended.err
    assert "changed since that checkpoint, and taken over: max_train_steps 1 -> 2" in resumed.ended.err
    assert {type(layer.base_layer).__name__ for layer in adapters(resumed).values()} == {"Int8Linear"}


def test_auto_names_its_precision_and_why(train):
    run = train(base_model_precision="auto", max_train_steps=1)
    device = run.state.accelerator.device.type
    assert run.state.plan.config.base_model_precision != "auto"
    assert (device != "cpu") or "base_model_precision auto: no_change, for no format is faster" in run.ended.err
    (recorded,) = run.output.glob("checkpoint-1/resume/state.json")
    assert json.loads(recorded.read_text())["config"]["base_model_precision"] == (
        run.state.plan.config.base_model_precision
    )


@pytest.mark.parametrize("mechanism", ["math", "flash", "auto"])  # the last restores torch's setting
def test_attention_mechanism_is_the_only_kernel_that_torch_may_use(train, mechanism):
    train(attention_mechanism=mechanism, max_train_steps=1)
    cuda = torch.backends.cuda
    allowed = {"flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled()}
    assert {**allowed, "math": cuda.math_sdp_enabled()} == {
        name: mechanism in ("auto", name) for name in ("flash", "efficient", "math")
    }
    assert not cuda.cudnn_sdp_enabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has every kernel")
def test_an_attention_kernel_that_the_device_lacks_is_one_error(train):
    ended = run_in(train.folder, *changed(train.arguments, attention_mechanism="efficient", output_dir="lacking"))
    assert ended.status == 2
    assert (
        "error: attention_mechanism efficient: this kernel exists only for GPUs, and the run is on the CPU" in ended.err
    )


@pytest.mark.parametrize("precision", ["fp8-matmul", "int8-matmul"])
def test_a_base_model_precision_may_multiply_in_eight_bits(train, precision):
    run, exact = train(base_model_precision=precision), train()
    assert {type(layer.base_layer).form for layer in adapters(run).values()} == {precision.removesuffix("-matmul")}
    for ours, true in zip(run.results, exact.results, strict=True):
        assert ours.loss == pytest.approx(true.loss, rel=0.02)
        assert ours.loss != true.loss
    assert all(moved > 0 for moved in run.moved)


def test_options_of_int8_reach_the_layers(train):
    run = train(base_model_precision="int8-matmul", int8_rotation="true", keep_transposed_weights="true")
    layers = [layer.base_layer for layer in adapters(run).values()]
    assert {type(layer).__name__ for layer in layers} == {"RotatedInt8Linear"}
    assert all(torch.equal(layer.transposed, layer.weight.t()) for layer in layers)


@pytest.mark.parametrize(("precision", "checkpointing"), [("no_change", "true"), ("int8-matmul", "false")])
def test_compiled_blocks_train_the_same_weights(train, precision, checkpointing):
    options = {"base_model_precision": precision, "gradient_checkpointing": checkpointing}
    plain, traced = train(**options), train(**options, dynamo_backend="aot_eager")
    assert traced.state.compiled
    assert not plain.state.compiled
    # other roundings move some 8-bit codes by one
    apart = (traced.weights[-1] - plain.weights[-1]).norm() / (plain.weights[-1] - plain.weights[0]).norm()
    assert apart < (1e-3 if precision == "no_change" else 0.1)


def test_weights_that_torch_cannot_compile_are_one_error(train):
    ended = run_in(
        train.folder,
        *changed(train.arguments, dynamo_backend="inductor", base_model_precision="own-8bit", plugins=ROUNDING),
    )
    assert ended.status == 2
    said = "dynamo_backend 'inductor': torch.compile does not take weights of base_model_precision 'own-8bit'"
    assert said in ended.err
    assert "fp8-matmul, int8-matmul it takes" in ended.err
    assert "scan" not in ended.err  # it is found in the config alone


def test_a_run_says_what_torch_compile_leaves_out(train):
    (train.folder / "halting.py").write_text(HALTING)
    run = train(plugins="./halting.py", base_model_precision="halting", dynamo_backend="aot_eager")
    assert "warning: torch.compile left out parts of the blocks, and steps are slower for it: " in run.ended.err
    assert "left out parts" not in train(base_model_precision="int8-quanto", dynamo_backend="aot_eager").ended.err


# output


def test_checkpoint_step_interval_saves_every_so_many_steps_and_at_the_end(train):
    assert checkpoints(train(checkpoint_step_interval=2, max_train_steps=5).output) == [
        "checkpoint-2", "checkpoint-4", "checkpoint-5",
    ]  # fmt: skip
    assert checkpoints(train(checkpoint_step_interval=0, max_train_steps=5).output) == ["checkpoint-5"]


def test_the_loss_of_the_config_is_the_loss_of_a_step(train):
    (train.folder / "tenfold.py").write_text(TENFOLD)
    plain, tenfold = train(), train(plugins="./tenfold.py", loss_type="tenfold")
    assert tenfold.results[0].loss == pytest.approx(10 * plain.results[0].loss)
    assert tenfold.results[0].grad_norm == pytest.approx(10 * plain.results[0].grad_norm, rel=1e-4)


HALTING = """
from typing import ClassVar
import torch
from difftrain import Quantizer, hookimpl


class HaltingLinear(torch.nn.Linear):
    def forward(self, input):
        torch._dynamo.graph_break()
        return super().forward(input)


class Halting(Quantizer):
    \"\"\"Weights that are said to be compiled, and halt it.\"\"\"

    name: ClassVar[str] = "halting"
    can_compile: ClassVar[bool] = True

    def check(self):
        return None

    def convert(self, name, module, device):
        module.__class__ = HaltingLinear
        return module.to(device).requires_grad_(False)


@hookimpl
def difftrain_quantizers():
    return (Halting,)
"""
TENFOLD = '''
from typing import ClassVar

from difftrain import Loss, hookimpl


class Tenfold(Loss):
    """Ten times the mean squared error."""

    name: ClassVar[str] = "tenfold"

    def compute(self, prediction, noisy, batch):
        return 10 * (prediction.float() - noisy.target).square().flatten(1).mean(1)


@hookimpl
def difftrain_losses():
    return (Tenfold,)
'''
