"""Says what a safetensors file is by the names of its tensors, where a model's weights were expected. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

KINDS: Mapping[str, str] = {
    r"\.lora_(A|B|up|down)\b|\blora_(A|B)\.": "a LoRA adapter",
    r"\.(lokr_w\d|hada_w\d|oft_blocks|oft_diag|dora_scale)\b": "a LyCORIS adapter",
    r"\.[ab][12]\.weight$": "a GLoRA adapter",
    r"\.ia3_\w+$": "an IA3 adapter",
    r"^(controlnet_\w+|control_model)\.|^lora_controlnet$": "a ControlNet",
    r"^(image_proj|ip_adapter)\.|\.processor\.ip_adapter_": "an IP-Adapter",
    r"^adapter\.body\.": "a T2I-Adapter",
    r"^(emb_params|clip_[lg])$|^string_to_param\b": "a textual inversion embedding",
    r"\.exp_avg(_sq)?$": "the state of an optimizer",
    r"^conditioner\.embedders\.": "a Stable Diffusion XL checkpoint",
    r"^cond_stage_model\.": "a Stable Diffusion checkpoint",
    r"(^|\.)encoder\.block\.\d+\.layer\.\d+\.SelfAttention\.": "a T5 text encoder",
    r"(^|\.)text_model\.encoder\.layers\.\d+\.": "a CLIP text encoder",
    r"(^|\.)(decoder\.up\.\d+\.block|decoder\.up_blocks|encoder\.down\.\d+\.block|encoder\.down_blocks)\b": "a VAE",
    r"^(decoder\.upsamples|encoder\.downsamples)\.\d+\.": "a VAE",
    r"^vision_model\.": "an image encoder (CLIP vision, SigLIP)",
    r"(^|\.)(input_blocks\.\d+\.\d+|down_blocks\.\d+\.(resnets|attentions))\.": "a Stable Diffusion UNet",
    r"(^|\.)joint_blocks\.\d+\.": "a Stable Diffusion 3 transformer",
    r"(^|\.)model\.layers\.\d+\.self_attn\.": "a language model",
    r"(^|\.)(noise_refiner|context_refiner)\.\d+\.": "a Lumina or Z-Image transformer",
    r"(^|\.)blocks\.\d+\.(self_attn|cross_attn)\.": "a Wan transformer",
    r"(^|\.)transformer_blocks\.\d+\.img_mod\.": "a Qwen-Image transformer",
    r"^(conv_first|model\.\d+\.sub\.\d+)\.": "an upscaler",
}
"""Pattern of a tensor's name, and what a file with such a tensor is; the first that fits wins."""

QUANTISED: Mapping[str, str] = {
    r"\.quant_state\.bitsandbytes__|\.absmax$": "bitsandbytes 4-bit (nf4, fp4)",
    r"\.SCB$": "bitsandbytes int8",
    r"\.weight_scale_2$": "nvfp4",
    r"\.(wscales|smooth_factor|smooth)$": "SVDQuant",
    r"\.(qzeros|g_idx)$": "GPTQ",
    r"\.weight\._(data|scale|shift)$": "optimum-quanto",
    r"\.weight_scalar$": "mxfp8",
}
"""Pattern of a tensor's name, and the quantised layout that has such tensors."""


def kind_of(names: Iterable[str]) -> str | None:
    """Return what a file with tensors of these names is, such as "a LoRA adapter"; None if no pattern fits."""
    return _first(KINDS, list(names))


def quantised_as(names: Iterable[str]) -> str | None:
    """Return the quantised layout that these names show; None if no pattern fits."""
    return _first(QUANTISED, list(names))


def _first(patterns: Mapping[str, str], names: list[str]) -> str | None:
    return next((what for pattern, what in patterns.items() if any(re.search(pattern, name) for name in names)), None)
