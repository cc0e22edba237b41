"""The strength of a LoRA can be changed for a while, exactly and without a trace."""

import pytest
import torch
from torch import nn

from difftrain.model.low_rank.lora import Lora


@pytest.fixture
def adapted():
    """Return a model, its adapter with weights that act, and an input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    base = [layer.weight.detach().clone() for layer in model]
    lora = Lora(lora_rank=2, lora_alpha=3)
    lora.attach(model, ["1"], torch.float32)
    for weight in lora.state(model).values():
        nn.init.normal_(weight)
    return model, lora, torch.randn(3, 8), base


def test_at_zero_the_model_is_exactly_as_without_the_adapter(adapted):
    model, lora, inputs, _ = adapted
    plain = model[1].base_layer(model[0](inputs))
    with lora.at_strength(model, 0):
        assert torch.equal(model(inputs), plain)
    assert not torch.equal(model(inputs), plain)


@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_a_strength_is_a_factor_on_the_adapters_effect(adapted, strength):
    model, lora, inputs, _ = adapted
    with lora.at_strength(model, 0):
        plain = model(inputs)
    effect = model(inputs) - plain
    with lora.at_strength(model, strength):
        torch.testing.assert_close(model(inputs) - plain, strength * effect)


@pytest.mark.parametrize("strength", [0, -1.0, 0.3])
def test_afterwards_all_is_as_before_even_after_an_error(adapted, strength):
    model, lora, inputs, _ = adapted
    model(inputs).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    before = model(inputs)
    with pytest.raises(ZeroDivisionError), lora.at_strength(model, strength):
        raise ZeroDivisionError
    assert torch.equal(model(inputs), before)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())
