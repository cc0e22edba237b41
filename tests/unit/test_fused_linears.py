"""Layers that share their input run as one product, and nothing else changes."""

import copy
import importlib.util
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

from difftrain.errors import PluginError
from difftrain.model.fused.fuse_linears import fuse_linears
from difftrain.model.fused.fused_layers import FusedLinear, LinearPart
from difftrain.model.low_rank.lora import Lora
from difftrain.model.precision.bitsandbytes import BitsAndBytesNf4
from difftrain.model.precision.eight_bit_matmul import Fp8Matmul, Int8Matmul
from difftrain.model.precision.torchao import TorchAoFp8, TorchAoInt8
from difftrain.model.tuned_blocks import TunedBlocks

WIDTH, TEXT = 64, 128
IMAGE_SIDE, TEXT_SIDE = ("to_q", "to_k", "to_v"), ("add_q", "add_v")
QUANTIZERS = {
    "fp8-matmul": Fp8Matmul,
    "int8-matmul": Int8Matmul,
    "int8-matmul, rotated": lambda: Int8Matmul(int8_rotation=True),
    "int8-torchao": TorchAoInt8,
    "fp8-torchao": TorchAoFp8,
    "nf4-bnb": BitsAndBytesNf4,
}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in IMAGE_SIDE:
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        for name in TEXT_SIDE:
            setattr(self, name, nn.Linear(TEXT, WIDTH, bias=False))

    def forward(self, hidden, *, text):
        heads = [layer(hidden).unflatten(-1, (4, 16)) for layer in (self.to_q, self.to_k, self.to_v)]
        key = torch.cat([heads[1], self.add_q(text).unflatten(-1, (4, 16))], dim=1)
        value = torch.cat([heads[2], self.add_v(text).unflatten(-1, (4, 16))], dim=1)
        query, key, value = (part.transpose(1, 2) for part in (heads[0], key, value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden, text):
        return hidden + self.out(self.attn(functional.layer_norm(hidden, (WIDTH,)), text=text))


def groups(count=3):
    return [
        tuple(f"{index}.attn.{name}" for name in side) for index in range(count) for side in (IMAGE_SIDE, TEXT_SIDE)
    ]


def model(*, fused, quantizer=None, adapted=True, lora=None):
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(3)).requires_grad_(False)
    if quantizer is not None:
        for name, part in list(blocks.named_modules()):
            if isinstance(part, nn.Linear):
                blocks.set_submodule(name, quantizer.convert(name, part, torch.device("cpu")))
    if fused:
        assert fuse_linears(blocks, groups()) == 6
    if adapted:
        torch.manual_seed(1)
        targets = [name for name, part in blocks.named_modules() if isinstance(part, nn.Linear)]
        (lora or Lora(lora_rank=4)).attach(blocks, [name for name in targets if ".whole" not in name], torch.float32)
    return blocks


def moved(blocks):
    """Give B values, so that gradients reach A as well."""
    torch.manual_seed(2)
    for name, parameter in blocks.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    return blocks


def outputs_and_gradients(blocks):
    """The output, and the gradients of the inputs and of each trained weight by name."""
    torch.manual_seed(3)
    hidden, text = torch.randn(2, 40, WIDTH, requires_grad=True), torch.randn(2, 20, TEXT, requires_grad=True)
    output = hidden
    for block in blocks:
        output = block(output, text)
    trained = {name: parameter for name, parameter in blocks.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(output.square().mean(), [hidden, text, *trained.values()])
    return {"output": output.detach(), **dict(zip(["hidden", "text", *trained], found, strict=True))}


def difference(ours, exact):
    """The largest relative difference of any tensor; both have the same names."""
    assert list(ours) == list(exact)
    return max(((ours[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact)


def test_fused_layers_give_the_same_outputs_and_gradients():
    plain, fused = (outputs_and_gradients(moved(model(fused=fused))) for fused in (False, True))
    assert difference(fused, plain) < 1e-5


def test_each_group_is_one_product(monkeypatch):
    calls = Counter()
    monkeypatch.setattr(FusedLinear, "forward", counted(FusedLinear.forward, calls))
    outputs_and_gradients(model(fused=True))
    assert set(calls.values()) == {1}
    assert len(calls) == 6


def counted(forward, calls):
    def forward_and_count(layer, *given):
        calls[id(layer)] += 1
        return forward(layer, *given)

    return forward_and_count


def test_adapters_have_the_same_names_and_first_weights():
    plain, fused = (Lora(lora_rank=4).state(model(fused=fused)) for fused in (False, True))
    assert list(plain) == list(fused)
    assert all(torch.equal(fused[name], tensor) for name, tensor in plain.items())


class Beside(nn.Module):
    """An adapter without peft: a small full matrix beside the layer that it wraps."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.added = nn.Parameter(torch.randn(inner.out_features, inner.in_features) / 100)

    def forward(self, input, **given):
        return self.inner(input, **given) + functional.linear(input, self.added)


def test_any_adapter_that_passes_keywords_on_will_do(monkeypatch):
    calls = Counter()
    monkeypatch.setattr(FusedLinear, "forward", counted(FusedLinear.forward, calls))
    found = []
    for fused in (False, True):
        blocks = model(fused=fused, adapted=False)
        torch.manual_seed(1)
        for name in groups()[0][1:] + groups()[3]:  # not all layers of a group
            blocks.set_submodule(name, Beside(blocks.get_submodule(name)))
        found.append(outputs_and_gradients(blocks))
    assert difference(found[1], found[0]) < 1e-5
    assert list(calls.values()) == [1] * 6


def test_dropout_draws_the_same_for_each_layer():
    lora = Lora(lora_rank=4, lora_dropout=0.5)
    plain, fused = (outputs_and_gradients(moved(model(fused=fused, lora=lora)).train()) for fused in (False, True))
    assert difference(fused, plain) < 1e-5
    assert difference(fused, outputs_and_gradients(moved(model(fused=True)).train())) > 0.01


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantised_layers_keep_their_codes(name):
    package = {"torchao": "torchao", "bnb": "bitsandbytes"}.get(name.rpartition("-")[2])
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    exact = outputs_and_gradients(moved(model(fused=False)))
    plain, fused = (model(fused=fused, quantizer=QUANTIZERS[name]()) for fused in (False, True))
    parts = [part for part in fused.modules() if isinstance(part, LinearPart)]
    assert len(parts) == 15
    assert all(part.weight.dtype == torch.int8 for part in parts)
    plain, fused = outputs_and_gradients(moved(plain)), outputs_and_gradients(moved(fused))
    # outputs differ by the order of sums; gradients by an 8-bit rounding, as queries, keys and values share a scale
    assert difference({"": fused["output"]}, {"": plain["output"]}) < 1e-5
    if name.endswith(("torchao", "bnb")):
        assert difference(fused, plain) < 1e-5
    assert difference(fused, exact) < 1.3 * difference(plain, exact) + 1e-5


def test_no_second_copy_of_the_weights_stays():
    plain, fused = model(fused=False, adapted=False), model(fused=True, adapted=False)
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (plain, fused)]
    assert sizes[0] == sizes[1]
    for index, name in enumerate(IMAGE_SIDE):
        part, was = fused[0].attn.get_submodule(name), plain[0].attn.get_submodule(name)
        whole = fused[0].attn.to_q_to_k_to_v.whole
        assert (part.in_features, part.out_features) == (was.in_features, was.out_features)
        assert torch.equal(part.weight, was.weight)
        assert torch.equal(part.bias, was.bias)
        assert part.weight.untyped_storage().data_ptr() == whole.weight.untyped_storage().data_ptr()
        assert part.weight.storage_offset() == index * WIDTH * WIDTH


def test_a_part_that_is_called_alone_is_right_too():
    plain, fused = model(fused=False, adapted=False), model(fused=True, adapted=False)
    inputs = torch.randn(7, TEXT)
    torch.testing.assert_close(fused[1].attn.add_v(inputs), plain[1].attn.add_v(inputs))


def test_a_layer_that_gets_another_tensor_is_right_too():
    plain, fused = Crossing(), Crossing()
    fused.load_state_dict(plain.state_dict())
    assert fuse_linears(nn.ModuleDict({"one": fused}), [("one.to_q", "one.to_k", "one.to_v")]) == 1
    first, second = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(fused(first, second), plain(first, second))


class Crossing(nn.Module):
    def __init__(self):
        super().__init__()
        for name in IMAGE_SIDE:
            setattr(self, name, nn.Linear(WIDTH, WIDTH).requires_grad_(False))

    def forward(self, first, second):
        return self.to_q(first) + self.to_k(second) * self.to_v(first)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("quantizer", [None, "fp8-matmul"])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_blocks_compile_and_recompute(backend, recompute, quantizer):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fused = moved(model(fused=True, quantizer=quantizer and QUANTIZERS[quantizer]()))
    plain = outputs_and_gradients(fused)
    TunedBlocks(list(fused), backend=backend, recompute=recompute)
    assert difference(outputs_and_gradients(fused), plain) < 1e-4
    if backend:  # one graph for all blocks: a graph of each would take an hour for a large model
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]


def test_copies_have_layers_of_their_own():
    fused = moved(model(fused=True))
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        fused[0].attn.to_q_to_k_to_v.whole.weight.zero_()
    expected = outputs_and_gradients(moved(model(fused=True)))
    assert difference(outputs_and_gradients(twin), expected) < 1e-6


def test_layers_of_different_forms_stay_apart():
    blocks = model(fused=False, adapted=False)
    blocks[0].attn.to_k = Fp8Matmul().convert("to_k", blocks[0].attn.to_k, torch.device("cpu"))
    assert fuse_linears(blocks, groups()) == 5
    assert not isinstance(blocks[0].attn.to_q, LinearPart)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (("0.attn.to_q", "1.attn.to_k"), "one parent"),
        (("0.attn.to_q", "0.attn.to_q"), "each once"),
        (("0.attn.to_q", "0.attn.add_q"), r"\[64, 128\] features"),
        (("0.attn", "0.out"), "a Attention, no linear layer"),
    ],
)
def test_a_group_that_cannot_be_one_is_refused(group, words):
    with pytest.raises(PluginError, match=words):
        fuse_linears(model(fused=False, adapted=False), [group])
