"""Linear modules by name: those that an adapter wraps, and those that share their input. Pure, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from difftrain import ConfigError

Target = Literal["all", "mmdit", "context", "context+ffs", "all+ffs", "tiny", "nano"]

DOUBLE = r"transformer_blocks\.\d+\."
SINGLE = r"single_transformer_blocks\.\d+\."
CONTEXT_ATTENTION = DOUBLE + r"attn\.(add_[qkv]_proj|to_add_out)"
DOUBLE_ATTENTION = DOUBLE + r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
SINGLE_ATTENTION = SINGLE + r"attn\.to_[qkv]"
CONTEXT_FEED_FORWARD = DOUBLE + r"ff_context\.net\.(0\.proj|2)"
FEED_FORWARD = DOUBLE + r"ff\.net\.(0\.proj|2)"
# the single blocks' proj_out mixes attention and feed-forward; this must not match the model's output layer
SINGLE_FEED_FORWARD = SINGLE + r"(proj_mlp|proj_out)"

PATTERNS: dict[str, tuple[str, ...]] = {
    "all": (DOUBLE_ATTENTION, SINGLE_ATTENTION),
    "mmdit": (DOUBLE_ATTENTION,),
    "context": (CONTEXT_ATTENTION,),
    "context+ffs": (CONTEXT_ATTENTION, CONTEXT_FEED_FORWARD),
    "all+ffs": (DOUBLE_ATTENTION, SINGLE_ATTENTION, FEED_FORWARD, CONTEXT_FEED_FORWARD, SINGLE_FEED_FORWARD),
    "tiny": (r"single_transformer_blocks\.(7|20)\.proj_out",),
    "nano": (r"single_transformer_blocks\.7\.proj_out",),
}

SHARING = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
"""Layers of an attention with one input each: of the image, or of both in single blocks; and of the text."""


def attention_inputs(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of modules in each attention that share their input.

    Args:
        names: Full names of all modules.
    """
    known = dict.fromkeys(names)
    attentions = [name for name in known if name.endswith(".attn")]
    groups = [tuple(f"{name}.{layer}" for layer in layers) for name in attentions for layers in SHARING]
    return [group for group in groups if all(name in known for name in group)]


def select_targets(names: Iterable[str], target: Target) -> list[str]:
    """Return the modules of a target set, in the model's order.

    Args:
        names: Full names of all modules.

    Raises:
        ConfigError: If the model has none of them, for example too few blocks.
    """
    chosen = re.compile("|".join(f"(?:{pattern})" for pattern in PATTERNS[target]))
    found = [name for name in names if chosen.fullmatch(name)]
    if not found:
        raise ConfigError(
            f"flux_lora_target {target!r} matches no module of this model (wanted: {' or '.join(PATTERNS[target])})\n"
            "hint: tiny and nano need a model with at least 21 or 8 single blocks; all fits every model"
        )
    return found
