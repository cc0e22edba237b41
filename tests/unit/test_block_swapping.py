"""Swapped blocks: their weights are there when a forward or backward needs them, and nothing is computed otherwise."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from difftrain.model.block_swapping import SwappedBlocks, spread
from difftrain.model.precision.eight_bit_linear import Int8Linear
from difftrain.model.tuned_blocks import TunedBlocks

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self, *, trains=True):
        super().__init__()
        self.base = nn.Linear(16, 16)
        self.base.requires_grad_(False)
        self.codes = Int8Linear(nn.Linear(16, 16)).requires_grad_(False)
        self.adapter = nn.Linear(16, 16, bias=False) if trains else None

    def forward(self, hidden, other=None):
        hidden = hidden + torch.tanh(self.codes(self.base(hidden)))
        return hidden if self.adapter is None else hidden + self.adapter(hidden)


def blocks_of(count=5, *, first_trained=0):
    torch.manual_seed(0)
    return nn.ModuleList(Block(trains=index >= first_trained) for index in range(count))


def run(blocks, wrap=lambda block: block):
    hidden = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    for block in blocks:
        hidden = wrap(block)(hidden)
    return hidden


def gradients(blocks, wrap=lambda block: block):
    blocks.zero_grad()
    output = run(blocks, wrap)
    output.square().mean().backward()
    trained = [parameter.grad.clone() for parameter in blocks.parameters() if parameter.requires_grad]
    return [output.detach(), *trained]


def resident(blocks):
    return [block.base.weight.untyped_storage().size() > 0 for block in blocks]


def recomputing(block):
    return lambda hidden: checkpoint(block, hidden, use_reentrant=False)


@pytest.mark.parametrize("wrap", [lambda block: block, recomputing], ids=["keeping", "recomputing"])
@pytest.mark.parametrize("indices", [[1, 3], [0, 1, 2, 3], [4], [0]])
@pytest.mark.parametrize("first_trained", [0, 2])
def test_outputs_and_gradients_are_those_of_resident_blocks(wrap, indices, first_trained):
    exact = gradients(blocks_of(first_trained=first_trained), wrap)
    blocks = blocks_of(first_trained=first_trained)
    SwappedBlocks(CPU).add(blocks, indices)
    for _ in range(2):
        ours = gradients(blocks, wrap)
        assert all(torch.equal(one, other) for one, other in zip(exact, ours, strict=True))
    with torch.no_grad():
        assert torch.equal(run(blocks), exact[0])


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("backend", ["aot_eager", None])
def test_tuned_blocks_can_be_swapped(recompute, backend):
    plain, blocks = blocks_of(), blocks_of()
    SwappedBlocks(CPU).add(blocks, [1, 2, 4])
    TunedBlocks(blocks, backend=backend, recompute=recompute)
    for _ in range(2):
        for one, other in zip(gradients(plain), gradients(blocks), strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_only_the_block_at_work_and_the_next_are_on_the_device():
    blocks = blocks_of(7)
    SwappedBlocks(CPU).add(blocks, [1, 2, 4, 6])
    seen = []
    for block in blocks:
        block.base.register_forward_hook(lambda *_: seen.append(resident(blocks)))
    with torch.no_grad():
        run(blocks)
    swapped = [[now[index] for index in (1, 2, 4, 6)] for now in seen]
    none, first, second = [False] * 4, [True, True, False, False], [False, True, True, False]
    third, last = [False, False, True, True], [False, False, False, True]
    assert swapped == [none, first, second, [False, False, True, False], third, last, last]
    assert resident(blocks) == [True, False, False, True, False, True, False]


def test_after_a_step_only_the_last_block_of_the_backward_may_be_left():
    blocks = blocks_of()
    SwappedBlocks(CPU).add(blocks, [0, 2, 3])
    gradients(blocks)
    assert resident(blocks)[1:] == [True, False, False, True]


def test_more_blocks_can_be_swapped_later():
    exact = gradients(blocks_of())
    blocks = blocks_of()
    swapped = SwappedBlocks(CPU)
    swapped.add(blocks, [1])
    gradients(blocks)
    swapped.add(blocks, [1, 3])
    assert swapped.indices == (1, 3)
    assert all(torch.equal(one, other) for one, other in zip(exact, gradients(blocks), strict=True))
    assert not resident(blocks)[3]


def test_host_memory_holds_the_frozen_weights_alone():
    swapped = SwappedBlocks(CPU)
    swapped.add(blocks_of(), [1, 3])
    one = 16 * 16 * 4 + 16 * 4 + 16 * 16 + 16 * 4 + 16 * 4
    assert one * 2 <= swapped.host_bytes <= (one + 5 * 255) * 2


def test_spread_leaves_even_gaps():
    assert spread(3, range(57)) == [9, 28, 47]
    assert spread(0, range(57)) == []
    assert spread(9, [1, 5]) == [1, 5]
