"""Fast kernels and formats on a CUDA device: they give what the exact ones give."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from difftrain.errors import MachineError
from difftrain.model.attention.choose_kernel import choose_attention, fastest_attention
from difftrain.model.attention.cudnn_attention import cudnn_attention
from difftrain.model.attention.flash4_attention import flash4_attention, obstacle
from difftrain.model.attention.kernel_names import OUR_KERNELS
from difftrain.model.attention.kernel_trial import try_kernels
from difftrain.model.attention.own_kernels import OWN_KERNELS, routed_to
from difftrain.model.precision.bitsandbytes import BitsAndBytesFp4, BitsAndBytesNf4
from difftrain.model.precision.eight_bit_linear import Fp8Linear, Int8Linear, RotatedInt8Linear
from difftrain.model.precision.int8_product import int8_product
from difftrain.model.precision.quanto import QuantoFp8, QuantoFp8Uz, QuantoInt2, QuantoInt4, QuantoInt8
from difftrain.model.precision.torchao import TorchAoFp8, TorchAoInt8
from difftrain.steps.step import _sent
from difftrain.types import AttentionShape

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
SHAPE = AttentionShape(batch=1, heads=8, queries=1024, keys=1024, head_dim=128)


def relative(value, exact):
    return ((value.float() - exact.float()).norm() / exact.float().norm()).item()


@pytest.mark.parametrize("attention", [cudnn_attention, flash4_attention])
def test_our_attention_is_right_for_inputs_and_gradients_that_are_not_dense(attention):
    if attention is flash4_attention and (problem := obstacle(CUDA)):
        pytest.skip(problem)
    torch.manual_seed(0)
    rows = [torch.randn(1, 700, 4, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    sparse = torch.randn(1, 700, 4, 256, device="cuda", dtype=torch.bfloat16)[..., ::2].permute(0, 2, 1, 3)
    heads = [row.permute(0, 2, 1, 3) for row in rows]
    ours = torch.autograd.grad(attention(*heads), rows, sparse)
    exact = [row.detach().float().requires_grad_() for row in rows]
    output = functional.scaled_dot_product_attention(*[row.permute(0, 2, 1, 3) for row in exact])
    for value, true in zip(ours, torch.autograd.grad(output, exact, sparse.float()), strict=True):
        assert relative(value, true) < 0.01


def test_the_fastest_attention_is_one_that_was_tried_and_is_used_by_models():
    trials = {trial.kernel: trial for trial in try_kernels(SHAPE, CUDA, torch.bfloat16)}
    assert set(trials) - {"flash-attn-4"} == {"cudnn", "flash", "efficient"}
    assert ("flash-attn-4" in trials) == (obstacle(CUDA) is None)
    assert all(trial.fault is None for trial in trials.values())
    text = fastest_attention([SHAPE], CUDA, torch.bfloat16)
    chosen = text.split()[1].rstrip(",")
    assert chosen in trials
    query = torch.randn(1, 8, 64, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    output = functional.scaled_dot_product_attention(query, query, query)
    last = output.grad_fn  # some kernels give rows, which are transposed afterwards
    names = [last.name(), *(before.name() for before, _ in last.next_functions if before)]
    assert any("difftrain" in name for name in names) == (chosen in OUR_KERNELS)
    assert routed_to() == (chosen if chosen in OUR_KERNELS else None)
    choose_attention("auto", CUDA)


@pytest.mark.parametrize("kernel", ["cudnn", "flash-attn-4"])
def test_our_attention_can_be_recorded_as_a_cuda_graph(kernel):
    if kernel == "flash-attn-4" and (problem := obstacle(CUDA)):
        pytest.skip(problem)
    attention = OWN_KERNELS[kernel].run
    rows = [torch.randn(1, 700, 4, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def gradients():
        output = attention(*[row.transpose(1, 2) for row in rows])
        return torch.autograd.grad(output, rows, torch.ones_like(output))

    exact = [each.clone() for each in gradients()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours = gradients()
    graph.replay()
    torch.cuda.synchronize()
    for value, true in zip(ours, exact, strict=True):
        assert relative(value, true) < 0.01


def test_an_attention_kernel_of_gpus_is_refused_elsewhere():
    with pytest.raises(MachineError, match="attention_mechanism cudnn: this kernel exists only for GPUs"):
        choose_attention("cudnn", torch.device("cpu"))


@pytest.mark.parametrize(("kind", "tolerance"), [(Fp8Linear, 0.05), (Int8Linear, 0.02), (RotatedInt8Linear, 0.02)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)]
)
def test_eight_bit_layers_pass_gradients_on(kind, tolerance, compiled, dtype, autocast):
    # a conversion of the product to the dtype that it has lost the gradient, only when compiled, without an error
    torch._dynamo.reset()
    torch.manual_seed(0)
    linear = nn.Linear(512, 256, device="cuda", dtype=dtype).requires_grad_(False)
    layer = kind(linear)

    def run(module, inputs):
        return module(functional.layer_norm(inputs, (512,)))

    inputs = torch.randn(128, 512, device="cuda", dtype=dtype, requires_grad=True)
    gradient = torch.randn(128, 256, device="cuda", dtype=dtype)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        output = (torch.compile(run, fullgraph=True) if compiled else run)(layer, inputs)
        exact = run(linear, inputs)
    (ours,) = torch.autograd.grad(output, inputs, gradient)
    (theirs,) = torch.autograd.grad(exact, inputs, gradient)
    assert relative(output, exact) < tolerance
    assert relative(ours, theirs) < tolerance


@pytest.mark.parametrize(
    ("quantizer", "package", "tolerance"),
    [
        (TorchAoInt8(), "torchao", 0.02),
        (TorchAoFp8(), "torchao", 0.05),
        (BitsAndBytesNf4(), "bitsandbytes", 0.13),
        (BitsAndBytesFp4(), "bitsandbytes", 0.16),
        (QuantoInt8(), "optimum.quanto", 0.02),
        (QuantoFp8(), "optimum.quanto", 0.06),
        (QuantoFp8Uz(), "optimum.quanto", 0.06),
        (QuantoInt4(), "optimum.quanto", 0.2),
        (QuantoInt2(), "optimum.quanto", 0.6),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("on", ["cuda", "cpu"])
def test_stored_weights_pass_gradients_on(quantizer, package, tolerance, compiled, on):
    pytest.importorskip(package)
    torch._dynamo.reset()
    torch.manual_seed(0)
    linear = nn.Linear(512, 256, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    copy = nn.Linear(512, 256, device=on, dtype=torch.bfloat16).requires_grad_(False)
    copy.load_state_dict(linear.state_dict())
    layer = quantizer.convert("layer", copy, torch.device(on)).cuda()
    assert {tensor.device.type for tensor in (*layer.parameters(), *layer.buffers())} == {"cuda"}

    def run(module, inputs):
        return module(functional.layer_norm(inputs, (512,)))

    inputs = torch.randn(128, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(128, 256, device="cuda", dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        forward = torch.compile(run, fullgraph=True) if compiled else run
        output, exact = forward(layer, inputs), run(linear, inputs)
        assert relative(forward(layer, inputs.detach()), exact) < tolerance
    assert output.dtype == torch.bfloat16
    (ours,) = torch.autograd.grad(output, inputs, gradient)
    (theirs,) = torch.autograd.grad(exact, inputs, gradient)
    assert relative(output, exact) < tolerance
    assert relative(ours, theirs) < tolerance


@pytest.mark.parametrize("rows", [33, 700])
@pytest.mark.parametrize(("columns", "depth"), [(256, 512), (272, 144), (80, 3072)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_int8_product_is_that_of_the_same_integers(rows, columns, depth, dtype):
    # sizes that fill no tile, and a K that is no multiple of a tile's
    left, right = (torch.randint(-127, 128, (size, depth), dtype=torch.int8, device="cuda") for size in (rows, columns))
    scales = [torch.rand(size, 1, device="cuda") + 0.1 for size in (rows, columns)]
    exact = (left.double() @ right.double().t()) * scales[0].double() * scales[1].double().t()
    ours = int8_product(left, right, *scales, dtype)
    assert ours.dtype == dtype
    assert relative(ours, exact) < (0.003 if dtype == torch.bfloat16 else 1e-6)


def test_a_noise_that_is_on_the_gpu_already_is_taken_as_it_is():
    drawn = torch.ones(2, device="cuda")
    assert _sent(drawn, CUDA).data_ptr() == drawn.data_ptr()
    assert _sent(torch.ones(2), CUDA).tolist() == [1, 1]
