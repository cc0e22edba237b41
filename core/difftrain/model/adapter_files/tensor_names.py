"""The parts of a tensor's name in an adapter file: whose prefix, which layer, which factor. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "lora_unet_",
    "lycoris_",
)
"""What programs write before a layer's name; a family's own prefix, and that after ``lora_``, come on top."""
ENCODERS = re.compile(r"(base_model\.model\.)?(lora_te\d?_|text_encoders?(_\d)?\.|te\d?\.|lora_clip|lora_t5)")
"""Start of the names of tensors for text encoders."""
_FACTORS: tuple[tuple[str, str], ...] = (
    (r"\.lora_A(?:\.default)?\.weight", "down"),
    (r"\.lora_B(?:\.default)?\.weight", "up"),
    (r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "lengths"),
    (r"\.lora[_.]down\.weight", "down"),
    (r"\.lora[_.]up\.weight", "up"),
    (r"\.dora_scale", "lengths"),
    (r"\.alpha", "alpha"),
    (r"\.(lokr_w1|lokr_w1_a|lokr_w1_b|lokr_w2|lokr_w2_a|lokr_w2_b)", ""),
    (r"\.(hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b)", ""),
    (r"\.(diff)(?:\.weight)?", ""),
    (r"\.(diff_b)", ""),
)
_PATTERNS = tuple((re.compile(f"(.+){pattern}"), factor) for pattern, factor in _FACTORS)


@dataclass(frozen=True, kw_only=True)
class TensorName:
    """The parts of one tensor's name."""

    prefix: str
    layer: str
    """As the file spells it, with dots or underscores."""
    factor: str
    """``down``, ``up``, ``alpha``, ``lengths`` (of DoRA), or a factor of LyCORIS as the library names it."""


def split_name(name: str, own_prefix: str = "") -> TensorName | None:
    """Return the parts of a name; None if it is not one of an adapter that is known here.

    Args:
        own_prefix: The family's :attr:`~difftrain.ModelFamily.lora_prefix`.
    """
    for pattern, factor in _PATTERNS:
        if match := pattern.fullmatch(name):
            own = (f"{own_prefix}.", f"lora_{own_prefix}_") if own_prefix else ()
            prefix = next((prefix for prefix in (*PREFIXES, *own) if match[1].startswith(prefix)), "")
            return TensorName(prefix=prefix, layer=match[1].removeprefix(prefix), factor=factor or match[2])
    return None


def is_of_encoder(name: str) -> bool:
    """Return whether a tensor belongs to a text encoder, not to the denoiser."""
    return ENCODERS.match(name) is not None
