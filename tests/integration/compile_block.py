"""Compiles blocks with torch's inductor for the CPU and prints how its caches were used for each, as JSON.

Its arguments are CACHE_DIR KIND..., for a process that does nothing else.
KIND is auto|flash|math|cudnn, keep|recompute and plain|int8, joined by hyphens; cudnn must come last.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch.nn import functional

from difftrain.machine.compile_cache import compiled_kept_in, folder_of_compiled
from difftrain.model.attention import cudnn_attention
from difftrain.model.attention.choose_kernel import choose_attention
from difftrain.model.attention.own_kernels import route_models_to, torchs_own_attention
from difftrain.model.precision.eight_bit_linear import Int8Linear
from difftrain.model.tuned_blocks import TunedBlocks
from difftrain.training.fitting.warm_up import tell_graphs_apart


class Block(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.frozen = linear
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, hidden):
        heads = (hidden * self.scale).unflatten(1, (2, 32))
        attended = functional.scaled_dot_product_attention(heads, heads, heads)
        return self.frozen(attended.flatten(1, 2).flatten(0, 1)).unflatten(0, hidden.shape[:2])


def attention_on_the_cpu():
    """Let the op of cuDNN's kernel compute on the CPU what it computes on a GPU."""
    exact = torchs_own_attention

    @cudnn_attention._attention.register_kernel("cpu")
    def forward(query, key, value):
        state = torch.zeros((), dtype=torch.int64)
        log_sum = (query @ key.mT / query.shape[-1] ** 0.5).logsumexp(-1, keepdim=True)
        return exact(query, key, value).contiguous(), log_sum, state, state.clone()

    @cudnn_attention._attention_backward.register_kernel("cpu")
    def backward(gradient, query, key, value, *_):
        root = query.shape[-1] ** 0.5
        shares = (query @ key.mT / root).softmax(-1)
        of_shares = gradient @ value.mT
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) / root
        return of_scores @ key, of_scores.mT @ query, shares.mT @ gradient

    cudnn_attention.takes = lambda tensor: True


def compile_block(cache, attention, activations, precision):
    torch._dynamo.reset()
    counters.clear()
    choose_attention("auto" if attention == "cudnn" else attention, torch.device("cpu"))
    if attention == "cudnn":
        attention_on_the_cpu()
        route_models_to("cudnn")
    tell_graphs_apart(torch.float32)
    torch.manual_seed(0)
    linear = nn.Linear(8, 8).requires_grad_(False)
    block = Block(Int8Linear(linear) if precision == "int8" else linear)
    TunedBlocks([block], backend="inductor", recompute=activations == "recompute")
    with compiled_kept_in(Path(cache)):
        assert folder_of_compiled()
        block(torch.randn(1, 64, 8)).square().mean().backward()
    used = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}
    traced = {name: counters["aot_autograd"][f"autograd_cache_{name}"] for name in ("hit", "miss", "bypass")}
    return {"graphs": used, "traced": traced, "gradient": block.scale.grad.tolist()}


def main():
    for variable in [name for name in os.environ if "CACHE_DIR" in name]:
        del os.environ[variable]
    inductor_config.compile_threads = 1  # each would be a process that imports torch
    cache, *kinds = sys.argv[1:]
    print(json.dumps({kind: compile_block(cache, *kind.split("-")) for kind in kinds}))
