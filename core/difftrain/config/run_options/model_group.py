"""Options of the model: which one, how its weights are stored, and how it computes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from difftrain.config.options import Options


class ModelOptions(Options):
    group: ClassVar[str] = "Model"

    model_family: str
    """Architecture of the model."""
    model_flavour: str | None = None
    """Checkpoint of the family; may be left out if the family has a default or only one."""
    pretrained_model_name_or_path: str | None = None
    """Hub id or local folder of the weights; default: the flavour's hub id."""
    pretrained_transformer_model_name_or_path: str | None = None
    """Take the denoiser from here, and only the other parts from pretrained_model_name_or_path: a hub id, a local
    folder, or one safetensors file in bf16, fp16 or fp8, as made for ComfyUI too. The first two may hold such a file
    and no other."""
    allow_other_weights: bool = False
    """Train even if the weights are another flavour's than model_flavour; otherwise that is an error."""
    base_model_precision: str = "no_change"
    """Number format of the frozen weights in memory; no_change keeps their format. auto is no_change if they need at
    most half of the free GPU memory (a quarter with gradient_checkpointing false), else the fastest 8-bit format."""
    quantize_via: Literal["accelerator", "cpu"] = "accelerator"
    """Where weights are quantised, layer by layer; cpu is slower, and leaves the device the room of one whole layer."""
    text_encoder_1_precision: str = "no_change"
    """Number format of the weights of the first text encoder while captions are encoded."""
    text_encoder_2_precision: str = "no_change"
    """The same for the second text encoder, if the family has one."""
    text_encoder_3_precision: str = "no_change"
    """The same for the third text encoder, if the family has one."""
    text_encoder_4_precision: str = "no_change"
    """The same for the fourth text encoder, if the family has one."""
    model_type: Literal["lora", "full"] = "lora"
    """What to train: lora is adapter weights beside the frozen model; full is all weights of the model itself, which
    takes their memory several times and saves a whole model."""
    lora_type: str = "standard"
    """Kind of adapter, with model_type lora."""
    attention_mechanism: Literal["auto", "cudnn", "flash", "flash-attn-4", "efficient", "math"] = "auto"
    """Attention kernel; auto times them on the GPU with the run's largest batch and takes the fastest that is right.
    flash-attn-4 needs the package of that name, and a card like the H100 or later."""
    dynamo_backend: Literal["auto", "no", "inductor", "aot_eager"] = "auto"
    """Compile the model's blocks with torch.compile; auto does so on GPUs if the run is long enough to gain by it.
    aot_eager only traces them, to find faults."""
    fuse_qkv_projections: bool = False
    """Compute queries, keys and values of each attention as one product of the frozen weights. The adapter, its files
    and its checkpoints are the same as without."""
    blocks_to_swap: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Blocks of the model whose frozen weights wait in the host's memory and come to the GPU when needed; auto takes as
    many as do not fit. Costs time if the copies take longer than the computation between them."""
    cuda_graphs: Literal["auto"] | bool = "auto"
    """Record forward and backward once for each shape of batches and replay them, so that the GPU does not wait for
    Python: at 512 px a step takes little more than half the time. auto does so for compiled models on one GPU."""
    compile_shapes_limit: int = Field(16, ge=1)
    """Compile for at most this many shapes of batches before the first step, a minute each; for others when they come.
    """

    @field_validator("dynamo_backend", mode="before")
    @classmethod
    def _off_is_no(cls, value: object) -> object:
        return "no" if str(value).strip().lower() in ("false", "0", "0.0", "disabled") else value
