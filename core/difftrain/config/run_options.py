"""The run options of the core. Plugins add theirs: see :func:`difftrain.config.schema.merge_options`.

One class a group of ``--help``; :class:`RunConfig` is all of them. No option here names a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from difftrain.config.known_keys import means_no_name
from difftrain.config.options import Options
from difftrain.types import Size

SEED_LIMIT = 2**63
"""Seeds are below it: torch's generators take 64 bits, signed."""
OptionsT = TypeVar("OptionsT", bound=Options)


class ModelOptions(Options):
    group: ClassVar[str] = "Model"

    model_family: str
    """Architecture of the model."""
    model_flavour: str | None = None
    """Which checkpoint of the family; may be left out when the family has a default, or only one."""
    pretrained_model_name_or_path: str | None = None
    """Hub id or local folder of the weights; default: the flavour's hub id."""
    allow_other_weights: bool = False
    """Train weights that are another flavour's than model_flavour, which is an error otherwise."""
    base_model_precision: str = "no_change"
    """How the frozen weights are stored; no_change leaves them as they are."""
    model_type: Literal["lora"] = "lora"
    """What is trained: adapter weights beside the frozen model."""
    lora_type: str = "standard"
    """Kind of adapter."""
    attention_mechanism: Literal["auto", "flash", "efficient", "math"] = "auto"
    """Kernel of the attention; auto lets torch choose."""


class TrainingOptions(Options):
    group: ClassVar[str] = "Training"

    max_train_steps: int | None = Field(None, ge=0)
    """Optimizer steps to train; 0 is the same as leaving it out. Give this or num_train_epochs."""
    num_train_epochs: int | None = Field(None, ge=0, le=1_000_000)
    """Passes over the data to train; 0 is the same as leaving it out. Give this or max_train_steps."""
    train_batch_size: int = Field(1, ge=1)
    """Samples of one forward pass on one device."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes of one optimizer step."""
    gradient_checkpointing: bool = True
    """Compute activations twice to save memory."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Number format of the forward pass; no is float32."""
    seed: int = Field(42, ge=0, lt=SEED_LIMIT)
    """Equal seeds give equal runs: order, noise, dropouts, the adapter's first weights."""
    timestep_sampler: str | None = None
    """Distribution of the noise levels; default: the family's, sigmoid for most."""
    loss_type: str = "mse"
    """What compares the prediction with its target."""
    on_nan: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is not finite: save the state before it and stop, or leave the update out and go on."""
    on_nan_limit: int = Field(10, ge=1)
    """Stop also with on_nan skip after so many such updates in a row."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _float32_is_no(cls, value: object) -> object:
        if value in ("fp32", "float32"):
            raise ValueError("must be no for float32")
        return value

    @field_validator("max_train_steps", "num_train_epochs")
    @classmethod
    def _zero_is_not_set(cls, value: int | None) -> int | None:
        return value or None

    @model_validator(mode="after")
    def _one_length(self) -> TrainingOptions:
        if self.max_train_steps and self.num_train_epochs:
            both = f"max_train_steps = {self.max_train_steps} and num_train_epochs = {self.num_train_epochs}"
            raise ValueError(f"{both} are both set; leave one of them out, or write 0")
        return self


class OptimizerOptions(Options):
    group: ClassVar[str] = "Optimizer"

    optimizer: str = "adamw_bf16"
    """What turns gradients into updates."""
    optimizer_config: dict[str, Any] = {}
    """Options of the optimizer: {"weight_decay": 0.01}, or the text weight_decay=0.01,eps=1e-8."""
    learning_rate: float = Field(1e-4, gt=0)
    """Highest learning rate of the schedule."""
    lr_scheduler: str = "constant"
    """Course of the learning rate."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises from zero."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Larger gradients are scaled down to this norm; 0 is off."""
    optimizer_beta1: float | None = Field(None, ge=0, lt=1)
    """First number of the optimizer's betas, where it has them and optimizer_config sets none."""
    optimizer_beta2: float | None = Field(None, ge=0, lt=1)
    """Second number of the optimizer's betas."""
    adam_beta1: float | None = Field(None, ge=0, lt=1)
    """The same as optimizer_beta1, for optimizers of the Adam kind alone: those with betas, eps and weight_decay."""
    adam_beta2: float | None = Field(None, ge=0, lt=1)
    """The same as optimizer_beta2, for optimizers of the Adam kind alone."""
    adam_weight_decay: float | None = Field(None, ge=0)
    """The weight_decay of optimizer_config, for optimizers of the Adam kind alone."""
    adam_epsilon: float | None = Field(None, gt=0)
    """The eps of optimizer_config, for optimizers of the Adam kind alone."""

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
    """Folder of latents, text embeddings and made images, where a dataset names none."""
    resolution: float = Field(1024, gt=0)
    """For datasets that do not set it; unit by resolution_type."""
    resolution_type: Literal["pixel", "area", "pixel_area"] = "pixel_area"
    """pixel: shorter edge; area: megapixels; pixel_area: edge whose square is the area."""
    minimum_image_size: float | None = Field(None, ge=0)
    """For datasets that do not set it: smaller images are left out; same unit as resolution."""
    caption_strategy: str | None = "textfile"
    """For datasets that do not set it: where captions come from."""
    aspect_bucket_alignment: int = Field(64, ge=1)
    """Edges of the training images are multiples of this, in pixels."""
    caption_dropout_probability: float = Field(0.0, ge=0, le=1)
    """Share of samples that are trained with the empty prompt."""
    reference_dropout_probability: float = Field(0.0, ge=0, le=1)
    """Share of samples that are trained without their references."""
    conditioning_multidataset_sampling: Literal["random", "combined"] = "random"
    """With several reference sets: one drawn per sample and epoch, or all of them at once."""
    vae_dtype: Literal["default", "bf16", "fp16", "fp32"] = "default"
    """Number format in which images are encoded; default follows mixed_precision."""
    vae_batch_size: int = Field(4, ge=1)
    """Images that are encoded at once."""
    vae_enable_tiling: bool = False
    """Encode and decode in tiles, to save memory."""
    vae_enable_slicing: bool = False
    """Encode and decode one image at a time, to save memory."""
    vae_cache_sample: Literal["sample", "mean"] = "sample"
    """Draw target latents anew at each visit, or always take the mean."""


class ValidationOptions(Options):
    group: ClassVar[str] = "Validation"

    validation_steps: int = Field(500, ge=0)
    """Draw images every so many steps, and at the end; 0 is never."""
    validation_on_startup: bool = False
    """Draw images before the first step too, to compare with."""
    validation_prompt: str | None = None
    """Prompt of one more image."""
    validation_prompt_library: Path | None = None
    """JSON file of more prompts: {"short name": "prompt"}."""
    eval_dataset_id: tuple[str, ...] = ()
    """Id or list of ids of target sets that are held out: never trained on, but measured and drawn in validations.
    Default: all sets with dataset_type eval; where there are none, training samples are measured and drawn."""
    num_eval_images: int = Field(4, ge=0)
    """Images drawn from held-out samples, or training samples, with their references and instructions."""
    validation_negative_prompt: str = ""
    """What to steer away from; used when validation_guidance_real is above 1."""
    validation_guidance: float | None = Field(None, ge=0)
    """Guidance that the model is told; default: the flavour's."""
    validation_guidance_real: float | None = Field(None, ge=1)
    """True classifier-free guidance, a second pass with the negative prompt; 1 is off. Default: the flavour's, which is
    1 for most."""
    validation_resolution: str = "1024x1024"
    """WIDTHxHEIGHT in pixels, or one edge; the area is kept, the aspect follows the reference."""
    validation_num_inference_steps: int = Field(28, ge=1)
    """Denoising steps of an image."""
    validation_seed: int = Field(42, ge=0, lt=SEED_LIMIT)
    """Seed of every validation image."""
    validation_num_seeds: int = Field(1, ge=1)
    """Draw every image with so many seeds in a row, and tell the mean of their PSNR: one seed says little where the
    result depends on it. The sheet shows the first."""

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
        """(width, height) in pixels."""
        edges = [int(edge) for edge in self.validation_resolution.lower().split("x")]
        return edges[0], edges[-1]


class OutputOptions(Options):
    group: ClassVar[str] = "Output"

    output_dir: Path = Path("output")
    """Folder of checkpoints, images and metrics."""
    checkpoint_step_interval: int = Field(500, ge=0)
    """Save every so many steps, and at the end; 0 is only at the end."""
    checkpoints_total_limit: int | None = Field(None, ge=1)
    """Keep only so many of the newest checkpoints."""
    resume_from_checkpoint: str = "latest"
    """latest goes on where the output folder's newest checkpoint stands; none starts anew; or a checkpoint's folder."""
    report_to: Literal["none"] = "none"
    """Where metrics go beside the metrics file."""

    @field_validator("resume_from_checkpoint", mode="before")
    @classmethod
    def _null_is_none(cls, value: object) -> object:
        return value or "none"


class PluginOptions(Options):
    group: ClassVar[str] = "Plugins"

    plugins: tuple[str, ...] = ()
    """Python files that are plugins, such as ./my_generator.py."""
    disable_plugin: tuple[str, ...] = ()
    """Installed plugins to leave out."""


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
    """Every option of a run, flat, as the run file has them."""

    def build(self, cls: type[OptionsT]) -> OptionsT:
        """The options object of a plugin's class, from those of its keys that the user set.

        Raises:
            pydantic.ValidationError: If the class refuses the values together.
        """
        return pick_options(self, cls)


def pick_options(flat: Options, cls: type[OptionsT]) -> OptionsT:
    """An object of ``cls`` from the keys of a flat config that were set; the rest are the class's defaults."""
    return cls(**{name: getattr(flat, name) for name in cls.model_fields if name in flat.model_fields_set})
