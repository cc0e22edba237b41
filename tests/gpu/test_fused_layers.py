"""Queries, keys and values as one product on a CUDA device, compiled and not."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional

from difftrain.model.fused.fuse_linears import fuse_linears
from difftrain.model.low_rank.lora import Lora
from difftrain.model.precision.eight_bit_matmul import Fp8Matmul, Int8Matmul
from difftrain.model.tuned_blocks import TunedBlocks

pytestmark = pytest.mark.gpu
WIDTH, BLOCKS = 1024, 4
NAMES = ("to_q", "to_k", "to_v")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in NAMES:
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, hidden):
        heads = [layer(hidden).unflatten(-1, (8, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)]
        return functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()

    def forward(self, hidden):
        return hidden + self.attn(functional.layer_norm(hidden, (WIDTH,)))


def blocks(quantizer, *, fused):
    torch.manual_seed(0)
    found = nn.ModuleList(Block() for _ in range(BLOCKS)).to("cuda", torch.bfloat16).requires_grad_(False)
    if quantizer is not None:
        for name, part in list(found.named_modules()):
            if isinstance(part, nn.Linear):
                found.set_submodule(name, quantizer.convert(name, part, torch.device("cuda")))
    if fused:
        groups = [tuple(f"{index}.attn.{name}" for name in NAMES) for index in range(BLOCKS)]
        assert fuse_linears(found, groups) == BLOCKS
    torch.manual_seed(1)
    Lora(lora_rank=16).attach(
        found, [f"{index}.attn.{name}" for index in range(BLOCKS) for name in NAMES], torch.bfloat16
    )
    for name, parameter in found.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.02)
    return found


def output_and_gradients(found):
    torch.manual_seed(2)
    hidden = inputs = torch.randn(2, 512, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        for block in found:
            hidden = block(hidden)
    trained = [parameter for parameter in found.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(hidden.float().square().mean(), [inputs, *trained])
    return [hidden.detach(), gradients[0], torch.cat([gradient.flatten() for gradient in gradients[1:]])]


@pytest.mark.parametrize("quantizer", [None, Fp8Matmul(), Int8Matmul()], ids=["bf16", "fp8", "int8"])
@pytest.mark.parametrize("backend", [None, "inductor"])
@pytest.mark.parametrize("recompute", [False, True])
def test_fused_blocks_give_the_same_outputs_and_gradients(quantizer, backend, recompute):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, fused = blocks(quantizer, fused=False), blocks(quantizer, fused=True)
    exact = output_and_gradients(plain)
    TunedBlocks(list(fused), backend=backend, recompute=recompute)
    for ours, theirs in zip(output_and_gradients(fused), exact, strict=True):
        assert ((ours - theirs).float().norm() / theirs.float().norm()).item() < (0.01 if quantizer is None else 0.05)
    if backend:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("quantizer", [None, Fp8Matmul()], ids=["bf16", "fp8"])
def test_the_old_weights_leave_no_memory_behind(quantizer):
    used = []
    for fused in (False, True):
        gc.collect()  # what earlier tests have left would be given back between the two readings
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        found = blocks(quantizer, fused=fused)
        torch.cuda.empty_cache()
        used.append((torch.cuda.memory_allocated() - before[0], torch.cuda.memory_reserved() - before[1]))
        del found
    assert used[1][0] <= used[0][0] * 1.01
    assert used[1][1] <= used[0][1] + 2**25  # pieces of the allocator, 20 MiB and more each
