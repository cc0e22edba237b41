"""A Qwen-Image-Edit of 200,000 random weights that every stock class loads: made offline, in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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

WIDTH = 16
"""Width of the text encoder."""
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip


class Processor(Qwen2VLProcessor):
    """The stock processor without the check of its parts, which requires torchvision for videos."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        return


def make_pipeline(cls: type = QwenImageEditPipeline) -> Any:
    """Return the checkpoint in memory, as a stock pipeline; the caller's random state stays unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        tokenizer = _tokenizer()
        modules = {"transformer": _transformer(), "vae": _vae(), "text_encoder": _text_encoder(tokenizer)}
    for module in modules.values():
        module.eval().requires_grad_(False)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    processor = Processor(Qwen2VLImageProcessor(), tokenizer)
    pipeline = cls(scheduler=scheduler, tokenizer=tokenizer, processor=processor, **modules)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny(folder: Path, cls: type = QwenImageEditPipeline, *, zero_cond_t: bool = False) -> Path:
    """Write the checkpoint in diffusers layout, its transformer in two shards."""
    index: dict[str, Any] = {"_class_name": cls.__name__}
    for name, part in make_pipeline(cls).components.items():
        saved = part.image_processor if name == "processor" else part
        saved.save_pretrained(folder / name, **({"max_shard_size": "200KB"} if name == "transformer" else {}))
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    if zero_cond_t:
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "zero_cond_t": True}))
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
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=list(SPECIAL))


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
