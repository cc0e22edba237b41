"""What compiled blocks compute in another way: the same functions, and the same gradients."""

import pickle
from types import SimpleNamespace

import pytest
import sympy
import torch
from diffusers.models.activations import GELU
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch._inductor.runtime.hints import ReductionHint
from torch.nn import functional

from difftrain import outputs_of
from difftrain.model.compiled.compiled_gelu import gelu
from difftrain.model.compiled.row_choices import fits_registers
from difftrain.model.compiled.row_kernels import read_rows_once
from difftrain.model.tuned_blocks import TunedBlocks


def test_gelu_through_a_sigmoid_is_the_tanh_form():
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-3e4, 3e4, 0.0])]).double().requires_grad_()
    exact = functional.gelu(values, approximate="tanh")
    ours = gelu(values.float()).double()
    torch.testing.assert_close(ours, exact, atol=1e-6, rtol=1e-6)
    wide = values.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(gelu(wide).sum(), wide)
    torch.testing.assert_close(slope.double(), torch.autograd.grad(exact.sum(), values)[0], atol=1e-5, rtol=1e-5)


def test_gelu_keeps_the_number_format():
    assert gelu(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.tanh, self.exact = nn.GELU(approximate="tanh"), nn.GELU()
        self.projected = GELU(8, 8, approximate="tanh")

    def forward(self, hidden):
        return self.projected(self.exact(self.tanh(hidden)))


def test_only_compiled_layers_of_the_tanh_form_take_the_sigmoid():
    torch.manual_seed(0)
    block, given = Block(), torch.randn(4, 8)
    before = block(given)
    calls = []

    def backend(graph, _inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    blocks = TunedBlocks([block], backend=backend, recompute=False)
    torch.testing.assert_close(block(given), before)
    assert sum("sigmoid" in call for call in calls) == 2
    assert sum("gelu" in call for call in calls) == 1
    blocks.compiled = False
    assert torch.equal(block(given), before)


@pytest.mark.parametrize(
    ("length", "fits"),
    [(1, True), (3072, True), (4096, True), (9216, False), (12288, True), (15360, True), (16384, True), (16385, False)],
)
def test_rows_that_fill_their_registers_stay_in_them(length, fits):
    assert fits_registers(length) == fits


def test_compiling_sets_inductor_up_to_read_rows_once():
    from torch._inductor.virtualized import V

    TunedBlocks([nn.Linear(2, 2)], backend="inductor", recompute=False)

    def decides(length, hint=ReductionHint.INNER, cooperative=False):
        features = SimpleNamespace(reduction_numel=length, numel=sympy.Integer(64), get_reduction_hint=lambda: hint)
        return V.choices.should_use_persistent_reduction(features, cooperative)

    assert type(V.choices).__name__ == "RowsInRegisters"
    assert decides(sympy.Integer(15360))
    assert V.choices.uuid()
    # torch writes the class into the keys of its cache, and without a key it keeps no compiled code
    assert pickle.loads(pickle.dumps(type(V.choices))) is type(V.choices)
    read_rows_once()  # twice changes nothing
    assert decides(sympy.Integer(3072))


def lora_block(*, dropout=0.0, names=("q", "k", "v")):
    class Projections(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 4)

        def forward(self, hidden):
            return torch.cat(outputs_of((self.q, self.k, self.v), hidden), dim=-1)

    torch.manual_seed(0)
    block = Projections().requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=6, lora_dropout=dropout, target_modules=list(names), init_lora_weights=False)
    return inject_adapter_in_model(config, block)


def results(forward, block, given):
    given = given.clone().requires_grad_()
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    torch.manual_seed(1)
    output = forward(given)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), [given, *trained])]


def products(block, given):
    """Return how many matrix products a compiled forward does."""
    count = []

    def backend(graph, _inputs):
        count.extend(node for node in graph.graph.nodes if "linear" in str(node.target))
        return graph.forward

    torch._dynamo.reset()
    return results(torch.compile(block.forward, backend=backend), block, given), len(count)


def test_layers_with_one_input_share_the_first_product_of_their_loras_once_compiled():
    block, given = lora_block(), torch.randn(5, 8)
    exact = results(block.forward, block, given)
    ours, count = products(block, given)
    assert count == 3 + 1 + 3
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("case", ["one without", "two adapters", "off", "merged", "dropout"])
def test_layers_that_are_more_than_plain_loras_are_called_as_ever(case):
    block = lora_block(
        names=("q", "v") if case == "one without" else ("q", "k", "v"), dropout=0.5 * (case == "dropout")
    )
    if case == "two adapters":
        block = inject_adapter_in_model(LoraConfig(r=3, target_modules=["q", "k", "v"]), block, adapter_name="second")
        for layer in (block.q, block.k, block.v):
            layer.set_adapter(["default", "second"])
    for layer in (block.q, block.v):
        if case == "off":
            layer.enable_adapters(False)
        if case == "merged":
            layer.merge()
    if case == "off":
        block.k.enable_adapters(False)
    given = torch.randn(5, 8)
    with torch.no_grad():
        torch.manual_seed(1)
        exact = block(given)
        torch._dynamo.reset()
        torch.manual_seed(1)
        ours = torch.compile(block.forward, backend="eager")(given)
    torch.testing.assert_close(ours, exact)
