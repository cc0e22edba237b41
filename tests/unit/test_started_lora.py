"""`lora_init_type` pissa and olora: they begin as a part of the weights, over weights that stay as they are."""

from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from conftest import run_in
from difftrain.errors import CheckpointError, ConfigError
from difftrain.model.fused.fuse_linears import fuse_linears
from difftrain.model.low_rank.lora import Lora
from difftrain.model.low_rank.started import start_of, weight_of
from difftrain.model.precision.bitsandbytes import BitsAndBytesNf4
from difftrain.model.precision.eight_bit_matmul import Fp8Matmul, Int8Matmul
from difftrain.model.precision.quanto import QuantoInt8
from difftrain.model.precision.torchao import TorchAoInt8
from difftrain.model.shared_input import outputs_of
from difftrain.testing import TinyFamily

KINDS = ("pissa", "pissa_niter_4", "olora")
QUANTIZERS = {
    "int8-quanto": (QuantoInt8, 0.02),
    "int8-matmul": (Int8Matmul, 0.02),
    "int8-matmul, rotated": (lambda: Int8Matmul(int8_rotation=True), 0.02),
    "fp8-matmul": (Fp8Matmul, 0.06),
    "int8-torchao": (TorchAoInt8, 0.02),
    "nf4-bnb": (BitsAndBytesNf4, 0.2),
}
PACKAGES = {"int8-quanto": "optimum.quanto", "int8-torchao": "torchao", "nf4-bnb": "bitsandbytes"}
TARGETS = ["0", "2"]


class Chosen(TinyFamily):
    def adapter_targets(self, denoiser):
        return TARGETS


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32)).to(dtype).requires_grad_(False)


def begun(kind, dtype=torch.float32, **options):
    lora = Lora(lora_rank=4, lora_init_type=kind, **options)
    found = model(dtype)
    torch.manual_seed(1)
    attach_and_begin(lora, found, TARGETS, dtype)
    return lora, found


def attach_and_begin(lora, found, targets, dtype):
    lora.attach(found, targets, dtype)
    assert list(lora.begin(found, targets)) == targets


def trained(kind, **options):
    """Return an adapter and a model after some steps."""
    lora, found = begun(kind, **options)
    parameters = [parameter for parameter in found.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0)
    for seed in range(3):
        step(found, optimizer, seed)
    return lora, found


def step(found, optimizer, seed):
    optimizer.zero_grad()
    (found(rows(seed)) - 1).square().mean().backward()
    optimizer.step()


def rows(seed=3, dtype=torch.float32):
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stock(kind, **options):
    """Return the model as peft changes it, with other frozen weights."""
    found = model()
    names = {"use_rslora": options.get("use_rslora", False), "lora_alpha": options.get("lora_alpha", 4)}
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=kind, **names)
    return inject_adapter_in_model(config, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_prediction_is_the_base_models_bit_for_bit(kind, dtype):
    _, found = begun(kind, dtype)
    assert torch.equal(found(rows(dtype=dtype)), model(dtype)(rows(dtype=dtype)))
    assert all(torch.equal(found[int(name)].base_layer.weight, model(dtype)[int(name)].weight) for name in TARGETS)


@pytest.mark.parametrize("options", [{}, {"lora_alpha": 8}, {"use_rslora": True}])
@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_it_trains_what_peft_trains_with_changed_weights(kind, options):
    theirs = stock(kind, **options)
    parameters = [parameter for name, parameter in theirs.named_parameters() if ".lora_" in name]
    optimizer = torch.optim.SGD(parameters, lr=0.3)
    _, ours = begun(kind, **options)
    mine = torch.optim.SGD([parameter for parameter in ours.parameters() if parameter.requires_grad], lr=0.3)
    for seed in range(5):
        step(theirs, optimizer, seed)
        step(ours, mine, seed)
    torch.testing.assert_close(ours(rows()), theirs(rows()), atol=1e-4, rtol=1e-4)
    assert (ours(rows()) - model()(rows())).abs().max() > 0.1


def test_the_fast_start_is_near_the_exact_one():
    weight = model()[0].weight
    exact, fast = (start_of(weight, kind, 4, 1.0) for kind in ("pissa", "pissa_niter_16"))
    product = exact.up @ exact.down
    assert (fast.up @ fast.down - product).norm() < 0.01 * product.norm()
    rough = start_of(torch.randn(200, 300), "pissa_niter_1", 4, 1.0)
    assert rough.down.shape == (4, 300)


def test_a_weight_of_fewer_directions_than_the_rank_has_a_finite_start():
    weight = torch.randn(32, 2) @ torch.randn(2, 24)
    for kind in KINDS:
        for one in (weight, torch.zeros(32, 24)):
            start = start_of(one, kind, 4, 1.0)
            assert (start.up @ start.down - one).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_a_plain_lora_of_twice_the_rank(kind, tmp_path):
    lora, found = trained(kind, lora_alpha=6)
    lora.write(lora.state(found), tmp_path, "transformer")
    options = Lora.options_to_use(tmp_path, "transformer", alone=False)
    assert options["lora_rank"] == 8
    plain, again = Lora(**{**lora.model_dump(), **options}), model()
    plain.attach(again, TARGETS, torch.float32)
    plain.load_state(again, plain.read(tmp_path, "transformer"))
    torch.testing.assert_close(again(rows()), found(rows()), atol=1e-6, rtol=1e-6)
    assert (found(rows()) - model()(rows())).abs().max() > 0.1
    assert "of rank 4" in lora.file_note
    assert "rank 8" in lora.file_note
    assert Lora().file_note == ""


def test_a_checkpoint_keeps_the_start_and_goes_on_bit_equal():
    lora, found = trained("pissa")
    kept = {name: tensor.clone() for name, tensor in lora.state(found).items()}
    other, again = begun("olora")  # any other start
    other.load_state(again, kept)
    assert torch.equal(again(rows()), found(rows()))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in other.state(again).items())
    plain = Lora(lora_rank=4)
    unstarted = model()
    plain.attach(unstarted, TARGETS, torch.float32)
    with pytest.raises(CheckpointError, match="do not fit"):
        plain.load_state(unstarted, kept)


def test_a_start_that_is_neither_computed_nor_loaded_cannot_train_unnoticed():
    lora, found = Lora(lora_rank=4, lora_init_type="pissa"), model()
    lora.attach(found, TARGETS, torch.float32)
    assert found(rows()).isnan().all()


def test_only_the_kind_of_the_start_must_stay_over_a_resume():
    fixed = [Lora(lora_init_type=kind).fixed()["lora_init_type"] for kind in ("default", "gaussian", *KINDS)]
    assert fixed == [None, None, "pissa", "pissa", "olora"]


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if find_spec(PACKAGES.get(name, "torch"))])
def test_over_quantised_weights_it_begins_from_what_they_stand_for(name):
    quantizer, error = QUANTIZERS[name]
    found, exact = model(torch.bfloat16), model()
    for target in TARGETS:
        converted = quantizer().convert(target, found[int(target)], torch.device("cpu"))
        found.set_submodule(target, converted)
    for target in TARGETS:
        wanted = exact[int(target)].weight
        assert (weight_of(found[int(target)]) - wanted).norm() < error * wanted.norm()
    before = found(rows(dtype=torch.bfloat16))
    lora = Lora(lora_rank=4, lora_init_type="pissa")
    attach_and_begin(lora, found, TARGETS, torch.bfloat16)
    assert torch.equal(found(rows(dtype=torch.bfloat16)), before)
    start, wanted = found[0].lora_B["default"].start.float(), start_of(exact[0].weight, "pissa", 4, 1.0)
    product = wanted.up @ wanted.down
    assert (start @ found[0].lora_A["default"].start.float() - product).norm() < 3 * error * product.norm()


def test_only_the_changes_are_trained_and_strength_zero_is_the_base():
    lora, found = trained("pissa")
    names = [name for name, parameter in found.named_parameters() if parameter.requires_grad]
    assert names == [f"{target}.lora_{part}.default.weight" for target in TARGETS for part in "AB"]
    with lora.at_strength(found, 0):
        assert torch.equal(found(rows()), model()(rows()))


def test_fused_shared_compiled_and_recomputed_layers_do_the_same():
    pair = nn.ModuleDict({"q": nn.Linear(64, 32), "k": nn.Linear(64, 32)}).requires_grad_(False)
    weights = {name: layer.weight.clone() for name, layer in pair.items()}
    holder = nn.ModuleDict({"pair": pair})
    fuse_linears(holder, [("pair.q", "pair.k")])
    assert torch.equal(weight_of(pair.q), weights["q"])
    lora = Lora(lora_rank=4, lora_init_type="pissa")
    lora.attach(holder, ["pair.q", "pair.k"], torch.float32)
    for weight in lora.state(holder).values():
        nn.init.normal_(weight)
    layers = [pair.q, pair.k]
    alone = torch.cat([layer(rows()) for layer in layers])
    compiled = torch.compile(lambda given: torch.cat(outputs_of(layers, given)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(rows()), alone)
    recomputed = torch.cat([checkpoint(layer, rows(), use_reentrant=False) for layer in layers])
    torch.testing.assert_close(recomputed, alone)


def test_what_does_not_go_together_is_said_at_once(tmp_path):
    lora = Lora(lora_init_type="olora", init_lora=tmp_path / "none", use_dora=True, lora_dropout=0.1)
    said = lora.check()
    keys = ("remove init_lora", "use_dora to false", "lora_dropout to 0", "none does not exist")
    assert len(said) == len(keys)
    assert all(key in one for key, one in zip(keys, said, strict=True))
    with pytest.raises(ConfigError, match="the weight of 2 has rank 32, and lora_rank is 33"):
        Lora(lora_rank=33, lora_init_type="pissa").check_model(model, Chosen())
    Lora(lora_rank=33).check_model(model, Chosen())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("loftq", "stores the rounding error of one quantised base"),
        ("pissa_niter", "did you mean 'pissa_niter_4'?"),
        ("pisa", "did you mean 'pissa'?"),
        ("pissa_niter_0", "pissa_niter_N with N from 1 to 99"),
    ],
)
def test_other_values_are_refused_with_the_nearest_choice(tmp_path, value, words):
    ended = run_in(tmp_path, "check", "--model", "flux", "--flavour", "kontext", "--lora_init_type", value)
    assert ended.status == 2
    assert words in ended.err
    assert "lora_init_type" in ended.err
