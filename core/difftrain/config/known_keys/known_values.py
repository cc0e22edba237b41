"""Values of existing keys: those with another name here, and those not supported yet."""

from __future__ import annotations

from collections.abc import Mapping

OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "loss_type": {"l2": "mse"},
    "attention_mechanism": {
        "diffusers": "auto",
        "sdpa": "auto",
        "native": "auto",
        "native-flash": "flash",
        "native-efficient": "efficient",
        "native-math": "math",
    },
    "base_model_precision": {"bf16": "no_change"},
    "caption_strategy": {"instance_prompt": "instanceprompt"},
}
"""By key, other programs' names of values. Spellings that differ only in ``-``, ``_`` and case need no line."""

NOT_BUILT_VALUES: Mapping[str, tuple[str, ...]] = {
    "model_type": ("full",),
    "lora_type": ("lycoris",),
    "base_model_precision": ("int2-quanto", "fp8uz-quanto", "fp4-bnb", "fp8-bnb"),
    "mixed_precision": ("fp16", "fp8"),
    "attention_mechanism": (
        "xformers",
        "sageattention",
        "sageattention-int8-fp16-triton",
        "sageattention-int8-fp16-cuda",
        "sageattention-int8-fp8-cuda",
        "sla",
        "flash-attn",
        "flash-attn-2",
        "flash-attn-3",
        "flash-attn-3-varlen",
        "flex",
        "native-npu",
        "native-xla",
    ),
    "lr_scheduler": ("polynomial", "cosine_with_restarts"),
    "loss_type": ("huber", "smooth_l1"),
    "report_to": ("tensorboard", "wandb", "comet_ml", "swanlab", "custom-tracker", "all"),
    "validation_prompt_library": ("true",),
    "dataset_type": ("image_embeds", "conditioning_image_embeds", "video", "audio"),
    "type": ("huggingface", "parquet", "csv", "aws", "memory", "webshart"),
    "crop_style": ("face",),
    "crop_aspect": ("random",),
    "caption_strategy": ("huggingface", "parquet", "jsonl", "csv", "webshart"),
    "conditioning_type": ("mask", "segmentation", "controlnet"),
}
"""Values of existing keys that name something not supported yet."""
