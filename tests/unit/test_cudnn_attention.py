"""cuDNN's attention in its safe form, with kernels on the CPU in place of the card's."""

import pytest
import torch
from torch.nn import functional

from difftrain.model.attention import cudnn_attention as module
from difftrain.model.attention.choose_kernel import choose_attention
from difftrain.model.attention.own_kernels import route_models_to, torchs_own_attention

SHAPE = (1, 2, 16, 8)


class StandIn:
    """A kernel in place of torch's operation, for those that call it; others still find its overloads."""

    def __init__(self, kernel, operation):
        self.kernel, self.operation = kernel, operation

    def __call__(self, *given):
        return self.kernel(*given)

    def __getattr__(self, name):
        return getattr(self.operation, name)


@pytest.fixture
def kernels(monkeypatch):
    """Replace the card's kernels by exact ones that record whether all they get is dense."""
    dense = []

    def forward(query, key, value, *_others):
        dense.append([each.is_contiguous() for each in (query, key, value)])
        output = torchs_own_attention(query, key, value)
        # cuDNN gives rows of heads; not dense as a tensor of heads
        output = output.transpose(1, 2).contiguous().transpose(1, 2)
        log_sum = (query @ key.mT / query.shape[-1] ** 0.5).logsumexp(-1, keepdim=True)
        seed, offset = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        return output, log_sum, None, None, 0, 0, seed, offset, None

    def backward(gradient, query, key, value, *_others):
        dense.append([each.is_contiguous() for each in (gradient, query, key, value)])
        # by hand: torch records nothing inside an operation
        strength = query.shape[-1] ** -0.5
        weights = (query @ key.mT * strength).softmax(-1)
        of_weights = gradient @ value.mT
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * strength
        return of_scores @ key, of_scores.mT @ query, weights.mT @ gradient

    for name, kernel in (("", forward), ("_backward", backward)):
        name = f"_scaled_dot_product_cudnn_attention{name}"
        monkeypatch.setattr(torch.ops.aten, name, StandIn(kernel, getattr(torch.ops.aten, name)))
    for operation in (module._attention, module._attention_backward):
        operation.register_kernel("cpu")(operation._init_fn)
    monkeypatch.setattr(module, "takes", lambda tensor: True)
    return dense


def heads():
    """Return queries, keys and values as models make them: not dense, since heads and tokens are swapped."""
    torch.manual_seed(0)
    rows = [torch.randn(SHAPE[0], SHAPE[2], SHAPE[1], SHAPE[3], requires_grad=True) for _ in range(3)]
    return rows, [row.transpose(1, 2) for row in rows]


# silent trap: cuDNN's attention inside stock models crashes in the backward pass or gives NaN on Hopper
@pytest.mark.parametrize("gradient", ["expanded", "strided"])
def test_the_kernel_only_gets_dense_tensors_and_is_exact(kernels, gradient):
    rows, given = heads()
    sparse = torch.randn(*SHAPE[:3], 2 * SHAPE[3])[..., ::2] if gradient == "strided" else torch.ones(1).expand(SHAPE)
    ours = torch.autograd.grad(module.cudnn_attention(*given), rows, sparse)
    exact = torch.autograd.grad(functional.scaled_dot_product_attention(*given), rows, sparse)
    assert kernels == [[True] * 3, [True] * 4]
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("mechanism", ["auto", "flash", "math"])
def test_torchs_own_use_of_cudnn_is_off_whatever_is_chosen(mechanism):
    torch.backends.cuda.enable_cudnn_sdp(True)
    choose_attention(mechanism, torch.device("cpu"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    choose_attention("auto", torch.device("cpu"))


# silent trap: torch.compile's cache took the graph of a run with flash attention for one with cuDNN's
def test_a_compiled_graph_names_the_kernel_that_it_calls(kernels):
    targets = []

    def backend(graph, _inputs):
        targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def model(*given):
        return functional.scaled_dot_product_attention(*given)

    def called(on):
        targets.clear()
        torch._dynamo.reset()
        route_models_to("cudnn" if on else None)
        try:
            output = torch.compile(model, backend=backend)(*heads()[1])
        finally:
            route_models_to(None)
        return [str(target) for target in targets], output

    own, ours = called(True)
    plain, exact = called(False)
    assert any("difftrain.cudnn_attention" in target for target in own)
    assert not any("difftrain" in target for target in plain)
    torch.testing.assert_close(ours, exact)
