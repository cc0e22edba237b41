"""The repeated blocks of a denoiser: compiled or not, keeping their activations or recomputing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from difftrain.model.attention.cudnn_attention import is_attention

Forward = Callable[..., Any]
VARIANTS = 256
"""Compiled variants of one kind of block, for all shapes of a run together; torch's own limit of 8 is soon reached."""


class TunedBlocks:
    """Replaces the forward of each block; how many blocks keep their activations may change between steps."""

    def __init__(self, blocks: Sequence[nn.Module], *, backend: str | None, recompute: bool) -> None:
        """Set the blocks up; nothing is compiled before the first forward.

        Args:
            backend: Of torch.compile; None leaves the blocks as they are.
            recompute: Whether blocks recompute their activations in the backward pass, all of them until
                :attr:`kept` says otherwise.
        """
        self._backend = backend
        self._made: dict[type[nn.Module], tuple[Forward, Forward]] = {}
        self.count = len(blocks)
        self.kept = 0 if recompute else self.count
        """How many blocks keep their activations: the last ones, whose activations are needed first."""
        if backend is not None:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        for index, block in enumerate(blocks):
            block.forward = partial(self._run, index, block, *self._variants(type(block)))

    def _run(
        self, index: int, block: nn.Module, keeping: Forward, recomputing: Forward, *given: Any, **named: Any
    ) -> Any:
        keeps = index >= self.count - self.kept or not torch.is_grad_enabled()
        return (keeping if keeps else recomputing)(block, *given, **named)

    def _variants(self, kind: type[nn.Module]) -> tuple[Forward, Forward]:
        """Return both forwards of one class: its blocks share what is compiled."""
        if kind not in self._made:
            forward: Forward = kind.forward
            if self._backend is None:
                self._made[kind] = forward, _recomputing(forward)
            else:
                compiled = partial(torch.compile, backend=self._backend, dynamic=False)
                self._made[kind] = compiled(forward), compiled(_recomputing_all_but_attention(forward))
        return self._made[kind]


def _recomputing(forward: Forward) -> Forward:
    def run(block: nn.Module, *given: Any, **named: Any) -> Any:
        return checkpoint(forward, block, *given, use_reentrant=False, **named)

    return run


def _recomputing_all_but_attention(forward: Forward) -> Forward:
    """Keep the attention's output too: a tenth of a block's activations, and a third of what recomputing it costs.

    Only worth it in a compiled block: outside, choosing by operation costs more time than attention.
    """
    contexts = partial(create_selective_checkpoint_contexts, _keep_attention)

    def run(block: nn.Module, *given: Any, **named: Any) -> Any:
        return checkpoint(forward, block, *given, use_reentrant=False, context_fn=contexts, **named)

    return run


def _keep_attention(_context: Any, operation: Any, *_given: Any, **_named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_attention(operation) else CheckpointPolicy.PREFER_RECOMPUTE
