"""Options of the data, and of the images that are drawn and measured in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from difftrain.config.known_keys import is_unset, means_no_name
from difftrain.config.options import Options
from difftrain.config.run_options.training_groups import SEED_LIMIT
from difftrain.config.user_values import block_of_switch
from difftrain.types import Size


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
    maximum_image_size: float | None = Field(None, gt=0)
    """For datasets that do not set it: first reduce larger images to target_downsample_size; same unit."""
    target_downsample_size: float | None = Field(None, gt=0)
    """For datasets that do not set it; see maximum_image_size."""
    max_upscale_threshold: float | None = Field(None, ge=0)
    """For datasets that do not set it: leave out images that would be enlarged by more than this share."""
    caption_strategy: str | None = "textfile"
    """For datasets that do not set it: where captions come from."""
    only_instance_prompt: bool = False
    """For datasets that set no caption_strategy: instance_prompt is the caption of every image."""
    instance_prompt: str | None = None
    """For datasets that do not set it: text for only_instance_prompt and prepend_instance_prompt."""
    prepend_instance_prompt: bool = False
    """For datasets that do not set it: put instance_prompt before every caption."""
    caption_shuffle: dict[str, Any] = {}
    """For datasets that do not set it: add captions with the tags in another order."""
    parquet_caption_column: str | None = None
    """For the block parquet of datasets that do not set its caption_column."""
    parquet_filename_column: str | None = None
    """For the block parquet of datasets that do not set its filename_column."""
    aspect_bucket_alignment: int = Field(64, ge=1)
    """Edges of the training images are multiples of this, in pixels."""
    caption_dropout_probability: float = Field(0.0, ge=0, le=1)
    """Share of samples trained with an empty caption."""
    reference_dropout_probability: float = Field(0.0, ge=0, le=1)
    """Share of samples trained without their references."""
    conditioning_multidataset_sampling: Literal["random", "combined"] = "random"
    """With several reference sets: draw one per sample and epoch, or use all of them at once."""
    data_backend_sampling: Literal["auto-weighting", "uniform"] = "auto-weighting"
    """Order of the sets in an epoch: each spread over all of it, by size and probability; or uniform, equally often,
    times their probability, until the smaller ones are through. Both show every sample equally often."""
    vae_dtype: Literal["default", "bf16", "fp16", "fp32"] = "default"
    """Number format for encoding images; default follows mixed_precision."""
    vae_batch_size: int = Field(4, ge=1)
    """Images encoded at once."""
    vae_enable_tiling: bool = False
    """Encode and decode in tiles, to save memory."""
    vae_enable_slicing: bool = False
    """Encode and decode one image at a time, to save memory."""
    vae_cache_ondemand: bool = False
    """Encode an image when a batch first needs it, in the background, and not all of them before the first step."""
    vae_cache_disable: bool = False
    """As vae_cache_ondemand, and store no latents: each visit of an image encodes it again, and needs no disk."""
    vae_cache_sample: Literal["sample", "mean"] = "sample"
    """Draw target latents again at each visit, or always take the mean."""

    @field_validator("instance_prompt", "parquet_caption_column", "parquet_filename_column", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if is_unset(value) else value

    @field_validator("caption_shuffle", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        return block_of_switch(value)


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
