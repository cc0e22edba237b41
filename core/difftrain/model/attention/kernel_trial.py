"""Times attention kernels, forward and backward, on a shape of the run, and compares each with exact attention."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from difftrain.model.attention import flash4_attention
from difftrain.model.attention.kernel_names import FLASH4
from difftrain.model.attention.own_kernels import OWN_KERNELS, Attention, OwnKernel, torchs_own_attention
from difftrain.types import AttentionShape

TOLERANCE = 0.02
"""Relative error of outputs and gradients that a kernel may have; bfloat16 alone gives 0.003."""
REPEATS = 3
_TORCHS = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The time and the faults of one kernel."""

    kernel: str
    seconds: float
    """Of one forward and backward; infinite after a fault."""
    fault: str | None = None
    """Why it cannot be used."""


def try_kernels(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> list[Trial]:
    """Try every kernel that could take the shape; a masked one is only tried with the kernels that take masks."""
    generator = torch.Generator(device).manual_seed(0)

    def random(length: int) -> Tensor:
        size = (shape.batch, length, shape.heads, shape.head_dim)  # in memory, as models make them
        return torch.randn(size, device=device, dtype=dtype, generator=generator).transpose(1, 2)

    tensors = (random(shape.queries), random(shape.keys), random(shape.keys))
    gradient = random(shape.queries)
    exact = _exact(tensors, gradient)
    kernels = ["efficient"] if shape.masked else ["cudnn", "flash", "efficient"]
    if not shape.masked and flash4_attention.obstacle(device) is None:
        kernels.append(FLASH4)
    return [_try(kernel, tensors, gradient, exact) for kernel in kernels]


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Return ``|value - exact| / |exact|``; NaN if either has one."""
    return float((value.float() - exact).norm() / exact.norm())


def _exact(tensors: tuple[Tensor, ...], gradient: Tensor) -> list[Tensor]:
    """Return output and gradients of the first head in float32: all heads would take too much memory."""
    query, key, value = (tensor[:1, :1].float().requires_grad_() for tensor in tensors)
    with sdpa_kernel(SDPBackend.MATH):
        output = torchs_own_attention(query, key, value)
    return [output.detach(), *torch.autograd.grad(output, (query, key, value), gradient[:1, :1].float())]


def _try(kernel: str, tensors: tuple[Tensor, ...], gradient: Tensor, exact: list[Tensor]) -> Trial:
    run: Attention = torchs_own_attention
    if own := OWN_KERNELS.get(kernel):
        if not all(map(own.takes, tensors)):
            return Trial(kernel=kernel, seconds=float("inf"), fault="it does not take this shape")
        run = own.run
    inputs: list[Tensor] = [_laid_out(tensor, own).detach().requires_grad_() for tensor in tensors]
    only = sdpa_kernel(_TORCHS[kernel]) if kernel in _TORCHS else nullcontext()
    try:
        with only:
            results = _forward_and_backward(run, inputs, gradient)
            seconds = _seconds(lambda: _forward_and_backward(run, inputs, gradient))
    except Exception as error:  # noqa: BLE001  # torch refuses a shape with RuntimeError, a package with anything
        return Trial(kernel=kernel, seconds=float("inf"), fault=(str(error) or type(error).__name__).splitlines()[0])
    errors = [relative_error(value[:1, :1], true) for value, true in zip(results, exact, strict=True)]
    worst = max(errors, key=lambda error: float("inf") if math.isnan(error) else error)
    if not worst <= TOLERANCE:
        return Trial(kernel=kernel, seconds=float("inf"), fault=f"its result is off by {worst:.3g}")
    return Trial(kernel=kernel, seconds=seconds)


def _laid_out(tensor: Tensor, own: OwnKernel | None) -> Tensor:
    """Return the tensor as the kernel gets it in a compiled block, which writes it so in the operation before."""
    return tensor.contiguous() if own and own.dense_heads else tensor


def _seconds(run: Callable[[], object]) -> float:
    """Return the seconds of the GPU alone: a compiled or recorded step does not wait for the launches of each call."""
    again = _recorded(run) or run
    seconds = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        again()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _recorded(run: Callable[[], object]) -> Callable[[], object] | None:
    """Return a replay of what the function does on the GPU; None if that cannot be recorded."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    except RuntimeError:
        return None
    return graph.replay


def _forward_and_backward(run: Attention, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    output = run(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]
