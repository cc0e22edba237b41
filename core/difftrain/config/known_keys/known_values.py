"""Values of existing keys: those with another name here, and those not supported yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PRECISION_KEYS = ("base_model_precision", *(f"text_encoder_{number}_precision" for number in range(1, 5)))
"""Keys whose values are names of quantizers, or one of :data:`PRECISION_WORDS`."""
PRECISION_WORDS: Mapping[str, tuple[str, ...]] = {
    "base_model_precision": ("no_change", "auto"),
    **dict.fromkeys(PRECISION_KEYS[1:], ("no_change",)),
}
PLAIN_CROP_STYLES = ("center", "corner", "random")
"""Values of ``crop_style`` that look at no pixels; all others are names of crop styles."""
_PRECISIONS = {
    "bf16": "no_change",
    "nf4": "nf4-bnb",
    "bnb-nf4": "nf4-bnb",
    "fp4": "fp4-bnb",
    "bnb-fp4": "fp4-bnb",
    "qint2": "int2-quanto",
    "qfloat8_e4m3fnuz": "fp8uz-quanto",
    "qint8": "int8-quanto",
    "qint4": "int4-quanto",
    "qfloat8": "fp8-quanto",
    "qfloat8_e4m3fn": "fp8-quanto",
}
_IN_FP8 = ("fp8-matmul", "fp8-torchao", "fp8-quanto")
UNCLEAR_PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "int8": ("int8-matmul", "int8-torchao", "int8-quanto"),
    **dict.fromkeys(("fp8", "float8", "fp8_e4m3fn", "float8_e4m3fn"), _IN_FP8),
}
"""Other programs' names of number formats that several quantizers here have; the user must choose."""
NO_PRECISIONS: Mapping[str, str] = {
    "fp8-bnb": f"bitsandbytes stores no weights as 8-bit floats; {', '.join(_IN_FP8[:-1])} and {_IN_FP8[-1]} do",
}
"""Other programs' names of precisions that cannot be built, and why."""

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
    **dict.fromkeys(PRECISION_KEYS, _PRECISIONS),
    "caption_strategy": {"instance_prompt": "instanceprompt"},
}
"""By key, other programs' names of values. Spellings that differ only in ``-``, ``_`` and case need no line."""

_ROWS_OR_CAPTIONS = (
    "a set whose rows hold the images is type = huggingface with dataset_name = {file}; a table with the captions of "
    "local images is type = local with caption_strategy = {name}"
)
INSTEAD: Mapping[str, Mapping[str, str]] = {
    "lora_init_type": {
        "loftq": "it stores the rounding error of one quantised base in the adapter, so the file would be wrong on "
        "every other base, and peft asks for a loftq_config, which run files do not have\n"
        "hint: set lora_init_type = pissa, which works over quantised weights and leaves them as they are",
    },
    "type": {
        "aws": "cloud stores come with a plugin that has a data source named 'aws' (docs/plugins.md, DataSource), and "
        "none is installed\nhint: install one, or mount or copy the bucket and set type = local with instance_data_dir",
        "parquet": _ROWS_OR_CAPTIONS.format(file="FILE.parquet", name="parquet"),
        "jsonl": _ROWS_OR_CAPTIONS.format(file="a folder of parquet files", name="jsonl"),
    },
    "crop_style": {
        "face": "crops around faces come with a plugin that has a crop style named 'face' (docs/plugins.md, CropStyle),"
        " and none is installed\nhint: install one, or set crop_style = center",
    },
}
"""By key and value, what to use instead of a value that is not supported."""

USUAL_ELSEWHERE: Mapping[str, object] = {"lycoris_config": Path("config/lycoris_config.json")}
"""Defaults of other programs for keys that are options here, as exported files carry them whether they are used or not.
"""

NOT_BUILT_VALUES: Mapping[str, tuple[str, ...]] = {
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
    "type": ("parquet", "jsonl", "aws", "memory", "webshart"),
    "caption_strategy": ("webshart",),
    "conditioning_type": ("mask", "segmentation", "controlnet"),
}
"""Values of existing keys that name something not supported yet."""
