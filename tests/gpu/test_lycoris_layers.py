"""LyCORIS changes on a CUDA device: compiled, recorded, over 8-bit weights, they give what they give as written."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from difftrain.model.lycoris.adapter import Lycoris
from difftrain.model.precision.eight_bit_matmul import Fp8Matmul, Int8Matmul
from difftrain.model.tuned_blocks import TunedBlocks

pytestmark = pytest.mark.gpu
WIDTH, BLOCKS = 1024, 2
FILES = {
    "lokr": {"algo": "lokr", "linear_dim": 10000, "factor": 16},
    "low-rank lokr": {"algo": "lokr", "linear_dim": 8, "factor": 4},
    "loha": {"algo": "loha", "linear_dim": 8},
    "lora": {"algo": "lora", "linear_dim": 8},
    "full": {"algo": "full"},
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        return hidden + self.down(functional.gelu(self.up(functional.layer_norm(hidden, (WIDTH,)))))


def blocks(folder, name, quantizer=None):
    torch.manual_seed(0)
    found = nn.ModuleList(Block() for _ in range(BLOCKS)).to("cuda", torch.bfloat16).requires_grad_(False)
    layers = [name for name, part in found.named_modules() if isinstance(part, nn.Linear)]
    for layer in layers if quantizer is not None else ():
        found.set_submodule(layer, quantizer.convert(layer, found.get_submodule(layer), torch.device("cuda")))
    (folder / "lycoris.json").write_text(json.dumps(FILES[name]))
    Lycoris(lycoris_config=folder / "lycoris.json").attach(found, layers, torch.bfloat16)
    for weight in found.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.05)
    return found


def gradients(found):
    torch.manual_seed(2)
    hidden = inputs = torch.randn(2, 512, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        for block in found:
            hidden = block(hidden)
    trained = [weight for weight in found.parameters() if weight.requires_grad]
    parts = torch.autograd.grad(hidden.float().square().mean(), [inputs, *trained])
    return [hidden.detach(), parts[0], torch.cat([part.flatten() for part in parts[1:]])]


def relative(value, exact):
    return ((value.float() - exact.float()).norm() / exact.float().norm()).item()


@pytest.mark.parametrize("quantizer", [None, Fp8Matmul(), Int8Matmul()], ids=["bf16", "fp8", "int8"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_compiled_blocks_give_the_same_outputs_and_gradients(tmp_path, name, recompute, quantizer):
    torch._dynamo.reset()
    exact = gradients(blocks(tmp_path, name, quantizer))
    compiled = blocks(tmp_path, name, quantizer)
    tuned = TunedBlocks(list(compiled), backend="inductor", recompute=recompute)
    assert tuned.compiled
    for value, true in zip(gradients(compiled), exact, strict=True):
        assert relative(value, true) < (0.03 if quantizer is None else 0.08)


@pytest.mark.parametrize("name", FILES)
def test_changes_can_be_recorded_as_a_cuda_graph(tmp_path, name):
    torch._dynamo.reset()
    found = blocks(tmp_path, name)
    TunedBlocks(list(found), backend="inductor", recompute=False)
    hidden = torch.randn(2, 512, WIDTH, device="cuda", dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            exact = [part.clone() for part in _trained_gradients(found, hidden)]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        ours = _trained_gradients(found, hidden)
    graph.replay()
    torch.cuda.synchronize()
    for value, true in zip(ours, exact, strict=True):
        assert relative(value, true) < 0.01


def _trained_gradients(found, hidden):
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        for block in found:
            hidden = block(hidden)
    trained = [weight for weight in found.parameters() if weight.requires_grad]
    return torch.autograd.grad(hidden.float().square().mean(), trained)
