"""The repeated blocks of a denoiser: compiled or not, keeping their activations or recomputing them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from difftrain.model.attention.own_kernels import is_attention
from difftrain.model.compiled.compiled_gelu import use_compiled_gelu
from difftrain.model.compiled.row_kernels import read_rows_once

Forward = Callable[..., Any]
VARIANTS = 256
"""Compiled variants of one class of blocks, for all shapes of a run together; torch stops at 8 by default."""
TOLERANCE = 0.25
"""Relative difference of gradients that compiling may make: other roundings, also of 8-bit products, but no missing
part."""


KEEPS_ATTENTION = "difftrain keeps the output of attention, 1"
"""To be changed whenever other operations are kept."""


@dataclass(frozen=True)
class _Call:
    """One call of a block, as the training makes it."""

    index: int
    block: nn.Module
    given: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Forwards:
    """The forwards of one class of blocks, each called with the block first."""

    keeping: Forward
    recomputing: Forward


class TunedBlocks:
    """Replaces the forward of each block; how many blocks keep their activations may change between steps."""

    def __init__(self, blocks: Sequence[nn.Module], *, backend: str | None, recompute: bool, interval: int = 1) -> None:
        """Set the blocks up; nothing is compiled before the first forward.

        Args:
            backend: Of torch.compile; None leaves the blocks as they are.
            recompute: Whether blocks recompute their activations in the backward pass, all of them until
                :attr:`kept` says otherwise.
            interval: Recompute only every so many blocks, from the first on; 1 is all.
        """
        self._interval = interval
        self.count = len(blocks)
        self.kept = 0 if recompute else self.count
        """How many blocks keep their activations: the last ones, whose activations are needed first."""
        self.compiled = backend is not None
        """May be set to False to run the blocks as they are written."""
        self._calls: dict[type[nn.Module], _Call] = {}
        """The last call of each class whose input needs a gradient, until :meth:`fault` has looked at it."""
        self.watched = False
        """Set to True for one forward and backward, for :meth:`fault` to look at."""
        self.unwatched: Container[int] = ()
        """Blocks to leave out there, by their places: their weights come and go."""
        kinds = {type(block) for block in blocks}
        self._plain = {kind: _as_written(kind) for kind in kinds}
        self._fast = self._plain if backend is None else {kind: _compiled(kind, backend) for kind in kinds}
        if backend is not None:
            read_rows_once()
            for block in blocks:
                use_compiled_gelu(block)
        for index, block in enumerate(blocks):
            block.forward = partial(self._run, index, block)

    def _run(self, index: int, block: nn.Module, *given: Any, **named: Any) -> Any:
        forwards = (self._fast if self.compiled else self._plain)[type(block)]
        if not torch.is_grad_enabled():
            return forwards.keeping(block, *given, **named)
        if self.watched and index not in self.unwatched and _needs_gradient(given, named):
            self._calls[type(block)] = _Call(index, block, given, named)
        return (forwards.keeping if self._keeps(index) else forwards.recomputing)(block, *given, **named)

    def _keeps(self, index: int) -> bool:
        return index % self._interval != 0 or index >= self.count - self.kept

    def fault(self, *, keeping_too: bool = False) -> str | None:
        """Compare the gradients of one compiled block of each class with those of the block as it is written.

        To be called after a forward and backward with :attr:`watched`. torch.compile has been seen to lose a gradient
        without an error.

        Args:
            keeping_too: Whether blocks that recompute now may keep their activations later.

        Returns:
            What is wrong; None if nothing is, or if it cannot be told: dropout draws other numbers in each.
        """
        calls, self._calls, self.watched = self._calls, {}, False
        for kind, call in calls.items():
            if call.index in self.unwatched:  # since it was called
                continue
            if any(isinstance(part, nn.Dropout) and part.p > 0 for part in call.block.modules()):
                continue
            exact, fast = _gradients(self._plain[kind].keeping, call), self._fast[kind]
            keeps = {self._keeps(index) for index in range(self.count)}
            variants = [fast.recomputing] if False in keeps else []
            variants += [fast.keeping] if True in keeps or keeping_too else []
            wrong = max(_difference(exact, _gradients(variant, call)) for variant in variants)
            if not wrong <= TOLERANCE:
                return f"the gradients of {kind.__name__} are off by {wrong:.2g} when torch.compile compiles it"
        return None


def _as_written(kind: type[nn.Module]) -> _Forwards:
    forward: Forward = kind.forward

    def recomputing(block: nn.Module, *given: Any, **named: Any) -> Any:
        return checkpoint(forward, block, *given, use_reentrant=False, **named)

    return _Forwards(keeping=forward, recomputing=recomputing)


def _compiled(kind: type[nn.Module], backend: str) -> _Forwards:
    """Return forwards that all blocks of the class share, so that it is compiled once.

    Recomputing keeps the attention's output: it is a tenth of a block's activations, and a third of the time that
    recomputing all of them costs. Only worth it in a compiled block: elsewhere torch has to look at each operation.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # it warns once of in-place operations in blocks that choose what to recompute; gradients are compared instead
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    forward: Forward = kind.forward
    contexts = partial(create_selective_checkpoint_contexts, _keep_attention)
    # names what it does, for torch's cache of compiled graphs, which cannot look into functions
    contexts.cache_hash = KEEPS_ATTENTION  # type: ignore[attr-defined]

    def recomputing(block: nn.Module, *given: Any, **named: Any) -> Any:
        return checkpoint(forward, block, *given, use_reentrant=False, context_fn=contexts, **named)

    compiled = partial(torch.compile, backend=backend, dynamic=False)
    return _Forwards(keeping=compiled(forward), recomputing=compiled(recomputing))


def _keep_attention(_context: Any, operation: Any, *_given: Any, **_named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_attention(operation) else CheckpointPolicy.PREFER_RECOMPUTE


def _needs_gradient(given: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in (*given, *named.values()))


def _gradients(forward: Forward, call: _Call) -> list[Tensor]:
    """Return the gradient of each input, and that of all trained weights in one row, of a fixed sum of the outputs.

    Not of each weight: where attention is nearly even, those of queries and keys are rounding errors and nothing else.
    """

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    given = [fresh(value) for value in call.given]
    named = {name: fresh(value) for name, value in call.named.items()}
    outputs = forward(call.block, *given, **named)
    outputs = [part for part in (outputs if isinstance(outputs, tuple) else (outputs,)) if part.requires_grad]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(part.shape, generator=generator).to(part) for part in outputs]
    inputs = [part for part in (*given, *named.values()) if isinstance(part, Tensor) and part.requires_grad]
    trained = [weight for weight in call.block.parameters() if weight.requires_grad]
    found = torch.autograd.grad(outputs, [*inputs, *trained], weights, allow_unused=True)
    known = [torch.zeros(1) if part is None else part.flatten().cpu().float() for part in found]
    return [*known[: len(inputs)], torch.cat(known[len(inputs) :])] if trained else known


def _difference(exact: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    """Return the largest relative difference, infinite for NaN; gradients that should be zero do not count."""
    pairs = [(true, value) for true, value in zip(exact, ours, strict=True) if float(true.norm()) > 0]
    differences = [float((value - true).norm() / true.norm()) for true, value in pairs]
    return max((math.inf if math.isnan(one) else one for one in differences), default=0.0)
