"""The run options of the core. Plugins add theirs: see :func:`difftrain.config.schema.merge_options`.

One class per group of ``--help``; :class:`RunConfig` has all of them. No option here names a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from difftrain.config.known_keys import means_no_name
from difftrain.config.options import Options
from difftrain.types import Size

SEED_LIMIT = 2**63
"""Seeds must be smaller: torch's generators take signed 64-bit numbers."""
OptionsT = TypeVar("OptionsT", bound=Options)


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
    model_type: Literal["lora"] = "lora"
    """What to train: lora is adapter weights beside the frozen model."""
    lora_type: str = "standard"
    """Kind of adapter."""
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


class TrainingOptions(Options):
    group: ClassVar[str] = "Training"

    max_train_steps: int | None = Field(None, ge=0)
    """Number of optimizer steps; 0 is the same as leaving it out. Give this or num_train_epochs."""
    num_train_epochs: int | None = Field(None, ge=0, le=1_000_000)
    """Number of passes over the data; 0 is the same as leaving it out. Give this or max_train_steps."""
    train_batch_size: int = Field(1, ge=1)
    """Samples per forward pass on one device."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes per optimizer step."""
    gradient_checkpointing: bool | Literal["auto"] = True
    """Recompute activations in the backward pass to save memory; auto recomputes only what does not fit on the GPU."""
    gradient_checkpointing_interval: int | None = Field(None, ge=0)
    """With gradient_checkpointing true: recompute only every so many blocks, 2 is every other; 0 and 1 are all."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Number format of the forward pass; no is float32."""
    seed: int = Field(42, ge=0, lt=SEED_LIMIT)
    """Runs with equal seeds are equal: order, noise, dropouts, initial weights of the adapter."""
    timestep_sampler: str | None = None
    """Distribution of the noise levels; default: the family's, sigmoid for most."""
    loss_type: str = "mse"
    """How the prediction is compared with its target."""
    on_nan: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is not finite: save the state before it and stop, or skip the update and continue."""
    on_nan_limit: int = Field(10, ge=1)
    """With on_nan skip: stop after this many skipped updates in a row."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _float32_is_no(cls, value: object) -> object:
        if value in ("fp32", "float32"):
            raise ValueError("must be no for float32")
        return value

    @field_validator("max_train_steps", "num_train_epochs", "gradient_checkpointing_interval")
    @classmethod
    def _zero_is_not_set(cls, value: int | None) -> int | None:
        return value or None

    @model_validator(mode="after")
    def _auto_has_no_interval(self) -> TrainingOptions:
        if self.gradient_checkpointing == "auto" and self.recomputes_some:
            raise ValueError(
                f"gradient_checkpointing = auto and gradient_checkpointing_interval = "
                f"{self.gradient_checkpointing_interval} are both set, and auto chooses the blocks itself; leave the "
                "interval out, or set gradient_checkpointing to true"
            )
        return self

    @property
    def recomputes_some(self) -> bool:
        """Whether the interval leaves out some blocks."""
        return (self.gradient_checkpointing_interval or 1) > 1

    @model_validator(mode="after")
    def _one_length(self) -> TrainingOptions:
        if self.max_train_steps and self.num_train_epochs:
            both = f"max_train_steps = {self.max_train_steps} and num_train_epochs = {self.num_train_epochs}"
            raise ValueError(f"{both} are both set; leave one of them out, or set it to 0")
        return self


class OptimizerOptions(Options):
    group: ClassVar[str] = "Optimizer"

    optimizer: str = "adamw_bf16"
    """How gradients become updates."""
    optimizer_config: dict[str, Any] = {}
    """Options of the optimizer: {"weight_decay": 0.01}, or the text weight_decay=0.01,eps=1e-8."""
    learning_rate: float = Field(1e-4, gt=0)
    """Highest learning rate of the schedule."""
    lr_scheduler: str = "constant"
    """How the learning rate changes over the run."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients with a larger norm are scaled down to it; 0 is off."""
    optimizer_beta1: float | None = Field(None, ge=0, lt=1)
    """First of the optimizer's betas, if it has betas and optimizer_config does not set them."""
    optimizer_beta2: float | None = Field(None, ge=0, lt=1)
    """Second of the optimizer's betas."""
    adam_beta1: float | None = Field(None, ge=0, lt=1)
    """Same as optimizer_beta1, but only for optimizers like Adam: those with betas, eps and weight_decay."""
    adam_beta2: float | None = Field(None, ge=0, lt=1)
    """Same as optimizer_beta2, but only for optimizers like Adam."""
    adam_weight_decay: float | None = Field(None, ge=0)
    """weight_decay of optimizer_config, but only for optimizers like Adam."""
    adam_epsilon: float | None = Field(None, gt=0)
    """eps of optimizer_config, but only for optimizers like Adam."""

    @field_validator("optimizer_config", mode="before")
    @classmethod
    def _pairs_as_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.split("=", 1) for pair in value.split(",") if pair.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("must be an object, or a text such as weight_decay=0.01,eps=1e-8")
        return {name.strip().removeprefix("--"): text.strip() for name, text in pairs}


class DataOptions(Options):
    group: ClassVar[str] = "Data"

    data_backend_config: Path = Path("config/multidatabackend.json")
    """File with the list of datasets."""
    cache_dir: Path = Path("cache")
    """Folder of latents, prompt embeds and made images, for datasets that set none."""
    resolution: float = Field(1024, gt=0)
    """For datasets that do not set it; the unit is set by resolution_type."""
    resolution_type: Literal["pixel", "area", "pixel_area"] = "pixel_area"
    """pixel: shorter edge; area: megapixels; pixel_area: edge whose square is the area."""
    minimum_image_size: float | None = Field(None, ge=0)
    """For datasets that do not set it: leave out smaller images; same unit as resolution."""
    caption_strategy: str | None = "textfile"
    """For datasets that do not set it: where captions come from."""
    aspect_bucket_alignment: int = Field(64, ge=1)
    """Edges of the training images are multiples of this, in pixels."""
    caption_dropout_probability: float = Field(0.0, ge=0, le=1)
    """Share of samples trained with an empty caption."""
    reference_dropout_probability: float = Field(0.0, ge=0, le=1)
    """Share of samples trained without their references."""
    conditioning_multidataset_sampling: Literal["random", "combined"] = "random"
    """With several reference sets: draw one per sample and epoch, or use all of them at once."""
    vae_dtype: Literal["default", "bf16", "fp16", "fp32"] = "default"
    """Number format for encoding images; default follows mixed_precision."""
    vae_batch_size: int = Field(4, ge=1)
    """Images encoded at once."""
    vae_enable_tiling: bool = False
    """Encode and decode in tiles, to save memory."""
    vae_enable_slicing: bool = False
    """Encode and decode one image at a time, to save memory."""
    vae_cache_sample: Literal["sample", "mean"] = "sample"
    """Draw target latents again at each visit, or always take the mean."""


class ValidationOptions(Options):
    group: ClassVar[str] = "Validation"

    validation_steps: int = Field(500, ge=0)
    """Draw images every this many steps, and at the end; 0 is never."""
    validation_on_startup: bool = False
    """Also draw images before the first step, for comparison."""
    validation_prompt: str | None = None
    """Prompt of one extra image."""
    validation_prompt_library: Path | None = None
    """JSON file with more prompts: {"short name": "prompt"}."""
    eval_dataset_id: tuple[str, ...] = ()
    """Id or list of ids of target sets that are held out: never trained on, only measured and drawn in validations.
    Default: all sets with dataset_type eval; if there are none, training samples are measured and drawn."""
    num_eval_images: int = Field(4, ge=0)
    """Number of samples to draw, held out or from training, with their references and instructions."""
    validation_negative_prompt: str = ""
    """Prompt to steer away from; used if validation_guidance_real is above 1."""
    validation_guidance: float | None = Field(None, ge=0)
    """Value of the model's guidance embedding; default: the flavour's."""
    validation_guidance_real: float | None = Field(None, ge=1)
    """True classifier-free guidance, with a second pass for the negative prompt; 1 is off. Default: the flavour's, 1
    for most."""
    validation_resolution: str = "1024x1024"
    """WIDTHxHEIGHT in pixels, or one edge; the area is kept, the aspect follows the reference."""
    validation_num_inference_steps: int = Field(28, ge=1)
    """Denoising steps per image."""
    validation_seed: int = Field(42, ge=0, lt=SEED_LIMIT)
    """Seed of the validation images."""
    validation_num_seeds: int = Field(1, ge=1)
    """Draw each image with this many consecutive seeds and report the mean PSNR: one seed says little where the result
    depends on it. The sheet shows the first."""

    @field_validator("eval_dataset_id", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if value is None or isinstance(value, str):
            value = (value,)
        return tuple(name for name in value if not means_no_name(name)) if isinstance(value, list | tuple) else value

    @field_validator("validation_resolution", mode="before")
    @classmethod
    def _one_edge(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("validation_resolution")
    @classmethod
    def _readable(cls, value: str) -> str:
        edges = value.lower().split("x")
        if len(edges) > 2 or not all(edge.strip().isdecimal() and int(edge) > 0 for edge in edges):
            raise ValueError("must be WIDTHxHEIGHT in pixels such as 1024x1024, or one edge such as 1024")
        return value

    @property
    def validation_size(self) -> Size:
        """Return (width, height) in pixels."""
        edges = [int(edge) for edge in self.validation_resolution.lower().split("x")]
        return edges[0], edges[-1]


class OutputOptions(Options):
    group: ClassVar[str] = "Output"

    output_dir: Path = Path("output")
    """Folder of checkpoints, images and metrics."""
    checkpoint_step_interval: int = Field(500, ge=0)
    """Save every this many steps, and at the end; 0 is only at the end."""
    checkpoints_total_limit: int | None = Field(None, ge=1)
    """Keep only this many of the newest checkpoints."""
    resume_from_checkpoint: str = "latest"
    """latest resumes from the newest checkpoint in the output folder; none starts over; or name a checkpoint folder."""
    report_to: Literal["none"] = "none"
    """Where metrics go in addition to the metrics file."""

    @field_validator("resume_from_checkpoint", mode="before")
    @classmethod
    def _null_is_none(cls, value: object) -> object:
        return value or "none"


class PluginOptions(Options):
    group: ClassVar[str] = "Plugins"

    plugins: tuple[str, ...] = ()
    """Plugins that are Python files, such as ./my_generator.py."""
    disable_plugin: tuple[str, ...] = ()
    """Installed plugins to turn off."""


GROUPS: tuple[type[Options], ...] = (
    ModelOptions,
    TrainingOptions,
    OptimizerOptions,
    DataOptions,
    ValidationOptions,
    OutputOptions,
    PluginOptions,
)
"""The core's groups, in the order of ``--help``."""


class RunConfig(
    ModelOptions, TrainingOptions, OptimizerOptions, DataOptions, ValidationOptions, OutputOptions, PluginOptions
):
    """Every option of a run, flat, as in the run file."""

    def build(self, cls: type[OptionsT]) -> OptionsT:
        """Return the options object of a plugin's class, built from the keys that the user set.

        Raises:
            pydantic.ValidationError: If the class refuses the combination of values.
        """
        return pick_options(self, cls)


def pick_options(flat: Options, cls: type[OptionsT]) -> OptionsT:
    """Return an object of ``cls`` from the keys that a flat config sets; the rest have the class's defaults."""
    return cls(**{name: getattr(flat, name) for name in cls.model_fields if name in flat.model_fields_set})
