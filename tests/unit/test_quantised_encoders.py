"""Text encoders that are quantised: what the GPU and the host hold meanwhile."""

import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn

from difftrain import Quantizer
from difftrain.model.precision.eight_bit_matmul import Int8Matmul
from difftrain.model.precision.quantise_encoders import place_quantised
from difftrain.model.precision.quanto import QuantoInt8

CPU, THERE = torch.device("cpu"), torch.device("meta")  # meta stands for the GPU


class Watching(Quantizer):
    """Sees what of the model is where while it converts a layer with another quantizer."""

    name: ClassVar[str] = "watching"
    inner: ClassVar[Quantizer]
    whole: ClassVar[list[weakref.ref[nn.Module]]]
    table: ClassVar[nn.Embedding]
    seen: ClassVar[list[tuple[int, torch.device, torch.device]]]

    def check(self):
        return None

    def convert(self, name, module, device):
        alive = sum(layer() is not None for layer in self.whole)
        self.seen.append((alive, module.weight.device, self.table.weight.device))
        self.whole.append(weakref.ref(module))
        return self.inner.convert(name, module, device)


@pytest.mark.parametrize("inner", [QuantoInt8(), Int8Matmul()], ids=lambda each: each.name)
def test_a_layer_is_freed_before_the_next_is_converted_and_what_stays_as_it_is_is_moved_first(inner):
    # else the GPU holds the whole encoder beside the quantised one, and the host the files that it comes from
    inner.convert("first", nn.Linear(16, 16), CPU)  # warnings of the first one, which pytest keeps, hold its layer
    encoder = nn.ModuleList([*(nn.Linear(16, 16) for _ in range(4)), nn.Embedding(8, 4)])
    Watching.inner, Watching.whole, Watching.table, Watching.seen = inner, [], encoder[-1], []
    place_quantised([encoder], [Watching()], THERE, quantize_on=CPU, family="f")
    assert Watching.seen == [(0, CPU, THERE)] * 4
    assert {tensor.device for tensor in encoder.state_dict().values()} == {THERE}
