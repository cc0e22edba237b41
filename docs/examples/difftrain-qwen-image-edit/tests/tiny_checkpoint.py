"""A Qwen-Image-Edit of some ten thousand random weights that every stock class loads; made offline, in a second."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)


class Processor(Qwen2VLProcessor):
    """The stock one without a check of its parts, which asks for torchvision because of videos."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None


STOCK = {"processor": "Qwen2VLProcessor"}
WIDTH = 16
"""Of the text encoder."""
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def make_pipeline(kind: type = QwenImageEditPipeline) -> Any:
    """The checkpoint in memory, as the stock pipeline of this class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = _tokenizer()
        processor = Processor(Qwen2VLImageProcessor(), tokenizer)
        parts = {"transformer": _transformer(), "vae": _vae(), "text_encoder": _text_encoder(tokenizer)}
        for part in parts.values():
            part.eval().requires_grad_(False)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    pipeline = kind(scheduler=scheduler, tokenizer=tokenizer, processor=processor, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_checkpoint(folder: Path, kind: type = QwenImageEditPipeline) -> Path:
    """The checkpoint in diffusers layout, its transformer in shards; by hand, since the processor is not the stock one."""
    pipeline = make_pipeline(kind)
    index: dict[str, Any] = {"_class_name": kind.__name__}
    for name, part in pipeline.components.items():
        saved = part.image_processor if name == "processor" else part
        more = {"max_shard_size": "200KB"} if name == "transformer" else {}
        saved.save_pretrained(folder / name, **more)
        index[name] = [
            "diffusers" if type(part).__module__.startswith("diffusers") else "transformers",
            STOCK.get(name, type(part).__name__),
        ]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _transformer() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6)
    )


def _vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1)


def _tokenizer() -> Qwen2Tokenizer:
    """Every byte is a token."""
    tokens = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    return Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], additional_special_tokens=list(SPECIAL)
    )


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)
