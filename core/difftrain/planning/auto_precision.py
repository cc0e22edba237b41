"""The rule of ``base_model_precision: auto``, for a run and for its forecast. No torch."""

from __future__ import annotations

from difftrain.config.schema import RunConfig

AUTO_PRECISIONS = ("fp8-matmul", "int8-matmul", "int8-quanto")
"""What is taken where weights must be smaller: the first that works on the card."""
_EASY_SHARE = 0.5
"""Activations of a step that recomputes, with adapter and optimizer, need less than the weights of a large model."""
_EASY_SHARE_KEEPING_ALL = 0.25
"""All activations need more than the weights."""


def easy_share(config: RunConfig) -> float:
    """Return the share of the free memory up to which weights are not quantised."""
    return _EASY_SHARE_KEEPING_ALL if config.gradient_checkpointing is False else _EASY_SHARE
