"""Blocks that are compiled, and that keep or recompute their activations."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

from difftrain.model.tuned_blocks import TunedBlocks


class Block(nn.Module):
    """A residual attention block."""

    calls: Counter = Counter()

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 96)

    def forward(self, hidden, *, scale):
        if not torch.compiler.is_compiling():
            self.calls[self] += 1
        heads = self.inner(hidden).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*heads)
        return hidden + scale * attended.transpose(1, 2).flatten(2)


def blocks(count=4):
    torch.manual_seed(0)
    Block.calls.clear()
    return [Block() for _ in range(count)]


def output_and_gradients(parts):
    torch.manual_seed(1)
    hidden = torch.randn(2, 10, 32)
    for part in parts:
        hidden = part(hidden, scale=0.5)
    gradients = torch.autograd.grad(hidden.square().mean(), [part.inner.weight for part in parts])
    return hidden.detach(), torch.stack(gradients)


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_nothing_changes_what_is_computed(backend, kept):
    plain = output_and_gradients(blocks())
    parts = blocks()
    TunedBlocks(parts, backend=backend, recompute=True).kept = kept
    torch.testing.assert_close(output_and_gradients(parts), plain)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_the_last_blocks_keep_their_activations(kept):
    parts = blocks()
    TunedBlocks(parts, backend=None, recompute=True).kept = kept
    output_and_gradients(parts)
    assert [Block.calls[part] for part in parts] == [2] * (4 - kept) + [1] * kept


@pytest.mark.parametrize(
    ("interval", "times"), [(1, [2, 2, 2, 2]), (2, [2, 1, 2, 1]), (3, [2, 1, 1, 2]), (9, [2, 1, 1, 1])]
)
def test_an_interval_recomputes_every_so_many_blocks(interval, times):
    plain = output_and_gradients(blocks())
    parts = blocks()
    TunedBlocks(parts, backend=None, recompute=True, interval=interval)
    torch.testing.assert_close(output_and_gradients(parts), plain)
    assert [Block.calls[part] for part in parts] == times


def test_without_recomputing_all_are_kept():
    parts = blocks()
    assert TunedBlocks(parts, backend=None, recompute=False).kept == 4
    output_and_gradients(parts)
    assert set(Block.calls.values()) == {1}


def test_nothing_is_recomputed_without_gradients():
    parts = blocks()
    TunedBlocks(parts, backend=None, recompute=True)
    with torch.no_grad():
        parts[0](torch.randn(1, 4, 32), scale=1.0)
    assert Block.calls[parts[0]] == 1


def test_blocks_of_one_class_share_what_is_compiled():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    parts = blocks()
    TunedBlocks(parts, backend="aot_eager", recompute=True)
    output_and_gradients(parts)
    # the first block's input needs no gradient: one graph for it, one for all others
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


# silent trap: after eight shapes torch.compile gives up, and every further bucket runs uncompiled
@torch._dynamo.config.patch(recompile_limit=8)
def test_each_of_many_image_sizes_is_compiled():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    parts = blocks(2)
    TunedBlocks(parts, backend="aot_eager", recompute=False)
    for tokens in range(10, 22):
        hidden = torch.randn(2, tokens, 32)
        for part in parts:
            hidden = part(hidden, scale=0.5)
    # two for each size: the first block's input needs no gradient
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * 12


def test_a_compiled_block_does_not_recompute_attention(monkeypatch):
    seen = []

    def backend(graph, inputs):
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.aot_autograd import make_boxed_func
        from torch._functorch.partitioners import min_cut_rematerialization_partition

        def compiler(name):
            def compile_graph(module, _inputs):
                targets = [str(node.target) for node in module.graph.nodes]
                seen.append((name, sum("scaled_dot_product" in each and "backward" not in each for each in targets)))
                return make_boxed_func(module.forward)

            return compile_graph

        return aot_autograd(
            fw_compiler=compiler("forward"),
            bw_compiler=compiler("backward"),
            partition_fn=min_cut_rematerialization_partition,
        )(graph, inputs)

    torch._dynamo.reset()
    parts = blocks(1)
    TunedBlocks(parts, backend=backend, recompute=True)
    output_and_gradients(parts)
    assert dict(seen) == {"forward": 1, "backward": 0}


def losing(graph, inputs):
    """A backend whose blocks pass no gradient on to their input."""
    from torch._dynamo.backends.debugging import aot_eager

    fast = aot_eager(graph, inputs)
    return lambda *given: fast(*[part.detach() if part.dim() == 3 else part for part in given])


def breaking(graph, inputs):
    """A backend whose gradients are NaN."""
    from torch._dynamo.backends.debugging import aot_eager

    fast = aot_eager(graph, inputs)
    return lambda *given: [Broken.apply(part) for part in fast(*given)]


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, value):
        return value.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient * torch.nan


def test_gradients_that_are_nan_when_compiled_are_found():
    torch._dynamo.reset()
    parts = blocks(3)
    tuned = TunedBlocks(parts, backend=breaking, recompute=False)
    tuned.watched = True
    output_and_gradients_of_trained(parts)
    assert "the gradients of Block are off by inf" in tuned.fault()


@pytest.mark.parametrize(("backend", "lost"), [("aot_eager", False), (losing, True)])
@pytest.mark.parametrize(("recompute", "interval"), [(True, 1), (True, 2), (False, 1)])
def test_a_gradient_that_compiling_loses_is_found(backend, lost, recompute, interval):
    torch._dynamo.reset()
    parts = blocks(3)
    tuned = TunedBlocks(parts, backend=backend, recompute=recompute, interval=interval)
    tuned.watched = True
    output_and_gradients_of_trained(parts)
    fault = tuned.fault(keeping_too=True)
    assert not tuned.watched
    assert (fault is not None) == lost
    if lost:
        assert "the gradients of Block are off by 1" in fault


def output_and_gradients_of_trained(parts):
    hidden = torch.randn(2, 10, 32)
    for part in parts:
        hidden = part(hidden, scale=0.5)
    hidden.square().mean().backward()


def test_blocks_that_are_not_compiled_any_more_run_as_they_are_written():
    torch._dynamo.reset()
    parts = blocks()
    tuned = TunedBlocks(parts, backend=losing, recompute=False)
    tuned.compiled = False
    torch.testing.assert_close(output_and_gradients(parts), output_and_gradients(blocks()))
