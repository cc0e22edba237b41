"""One entry of the dataset list. Sources, caption sources and pairings add their fields."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from difftrain.config.known_keys import is_unset
from difftrain.config.options import Options
from difftrain.config.run_options import OptionsT, pick_options
from difftrain.config.user_values import block_of_switch

KEYS_OF_TRAINING = (
    "repeats",
    "probability",
    "train_batch_size",
    "start_step",
    "end_step",
    "start_epoch",
    "end_epoch",
    "ignore_epochs",
    "is_regularisation_data",
    "timestep_sampling_offset",
    "slider_strength",
    "vae_cache_clear_each_epoch",
)
"""Keys that say how a set is trained on: without effect on reference sets and held-out ones."""


class DatasetConfig(Options):
    """The options of an entry; the keys of its source, captions and pairing are merged in."""

    id: str = Field(min_length=1)
    """Unique name; used in messages and for the default cache folder."""
    type: str = "local"
    """Where the images come from."""
    dataset_type: Literal["image", "conditioning", "eval", "text_embeds"] = "image"
    """eval is a target set that is never trained on, see eval_dataset_id; conditioning is implied by
    conditioning_type; text_embeds only says where prompt embeds are cached."""
    disabled: bool = False
    """Skip the entry."""

    cache_dir_vae: Path | None = None
    """Folder of the latents; default: vae/ID in the run's cache_dir."""
    vae_cache_ondemand: bool | None = None
    """Encode images of this set when a batch first needs them; default: the run's."""
    vae_cache_disable: bool | None = None
    """The same, and store no latents of this set; default: the run's."""
    vae_cache_clear_each_epoch: bool = False
    """Draw the crops of crop_style or crop_aspect = random again in each epoch, and clear the latents of the old ones;
    new ones are encoded when a batch first needs them. References follow as their conditioning_type says."""
    cache_dir: Path | None = None
    """Folder of the prompt embeds, on a text_embeds entry."""
    default: bool = False
    """On a text_embeds entry: use this one."""

    resolution: float | None = Field(None, gt=0)
    """Unit set by resolution_type; default: the run's."""
    resolution_type: Literal["pixel", "area", "pixel_area"] | None = None
    """pixel: shorter edge; area: megapixels; pixel_area: edge whose square is the area. Default: the run's."""
    minimum_image_size: float | None = Field(None, ge=0)
    """Smaller images are left out and counted; same unit as resolution."""
    maximum_image_size: float | None = Field(None, gt=0)
    """Larger images are first reduced to target_downsample_size; same unit as resolution."""
    target_downsample_size: float | None = Field(None, gt=0)
    """See maximum_image_size."""
    minimum_aspect_ratio: float | None = Field(None, gt=0)
    """Width over height; narrower images are left out and counted."""
    maximum_aspect_ratio: float | None = Field(None, gt=0)
    """Width over height; wider images are left out and counted."""
    max_upscale_threshold: float | None = Field(None, ge=0)
    """Images that would be enlarged by more than this share are left out and counted: 0.2 is a fifth, 0 is not at all.
    Default: the run's."""
    crop: bool = False
    """Crop images to crop_aspect; false cuts only the few pixels that overhang the bucket, evenly on both sides."""
    crop_style: str = "center"
    """Position of the crop. A plugin's style looks at the image and puts the crop around a point in it."""
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    """Aspect of the crop: square, the image's own, the closest of crop_aspect_buckets, or any of them at random."""
    crop_aspect_buckets: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    """Aspects (width over height) for crop_aspect = closest or random; random without any takes seven from 9:16 to
    16:9."""

    repeats: int = Field(0, ge=0, le=100_000)
    """0 visits each sample once per epoch, n visits it n + 1 times."""
    probability: float = Field(1.0, gt=0, le=1)
    """Share of the samples used in an epoch."""
    train_batch_size: int | None = Field(None, ge=1)
    """Samples of this set in a batch, at most; sets of one batch size share batches. Default: the run's."""
    max_num_samples: int | None = Field(None, ge=1)
    """Use only this many samples, the same ones in every run with the same seed."""
    start_step: int = Field(1, ge=1)
    """First training step that uses the set; a set that begins within an epoch is shown completely in what is left."""
    end_step: int | None = Field(None, ge=1)
    """Last training step that uses the set; default: the last of the run."""
    start_epoch: int = Field(1, ge=1)
    """First epoch that uses the set; with start_step too, both must be reached."""
    end_epoch: int | None = Field(None, ge=1)
    """Last epoch that uses the set; default: the last of the run."""
    ignore_epochs: bool = False
    """With data_backend_sampling uniform, epochs do not wait for this set: it starts over when it is through, and is
    cut off when the others are. No effect otherwise: each set is spread over the whole epoch."""
    is_regularisation_data: bool = False
    """Train these samples towards what the model predicts without its adapter, so that it keeps what it can do.
    Validations do not draw them."""
    slider_strength: float | None = None
    """Train these samples with the adapter at this strength, for adapters that are used as sliders: 1 is usual, -1 is
    the opposite way. Batches hold one strength."""
    timestep_sampling_offset: float = Field(0.0, ge=-10, le=10)
    """Moves the set's noise levels: added to their logit, before the shift. 1 is noisier, -1 is cleaner, 0 is off."""
    caption_strategy: str | None = None
    """Where captions come from; default: the data source if it gives any, else the run's. Null on a reference set uses
    the target set's."""

    caption_shuffle: dict[str, Any] = {}
    """Add captions with the tags in another order; {"count": 3}, see its keys below, or false. Default: the run's."""
    caption_filter_list: tuple[str, ...] = ()
    """What to take out of captions: regular expressions, or s/find/replacement/; or one text or JSON file of them. On a
    text_embeds entry: for all sets whose text it holds."""

    conditioning_data: tuple[str, ...] = ()
    """On a target set: id or list of ids of its reference sets."""
    conditioning_type: str | None = None
    """On a reference set: how its images follow the target images. Where images bring the references of their row: how
    these follow; default there: reference_strict."""
    conditioning: tuple[dict[str, Any], ...] = ()
    """On a target set: one generator or a list of them, which make references from its images."""
    text_embeds: str | None = None
    """On a target set: id of a text_embeds entry; all text goes to the default one, whichever is named."""
    source_dataset_id: str | None = None
    """On a reference set: the target set whose geometry it follows."""
    on_missing: Literal["error", "skip"] = "error"
    """On a target set: what to do with images that have no reference."""
    allow_identical_references: bool = False
    """On a target set: train even if every reference is the target image itself, to teach changing nothing."""

    @field_validator("conditioning", mode="before")
    @classmethod
    def _blocks_are_objects(cls, value: object) -> object:
        if isinstance(value, tuple):
            for position, block in enumerate(value, 1):
                if not isinstance(block, dict):
                    named = block if isinstance(block, str) else "superresolution"
                    raise ValueError(f'block {position} must be an object, such as {{"type": "{named}"}}')
        return value

    @field_validator("start_step", "start_epoch", "end_step", "end_epoch", "train_batch_size", mode="before")
    @classmethod
    def _zero_is_not_set(cls, value: object, info: ValidationInfo) -> object:
        # other programs write 0 for "from the start" and "no end"
        if value is None or (value == 0 and not isinstance(value, bool)):
            return 1 if str(info.field_name).startswith("start") else None
        return value

    @field_validator("slider_strength")
    @classmethod
    def _acts(cls, value: float | None) -> float | None:
        if value == 0:
            raise ValueError("must not be 0, at which nothing is trained; leave it out for the usual strength, 1")
        return value

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Self:
        for unit in ("step", "epoch"):
            first, last = getattr(self, f"start_{unit}"), getattr(self, f"end_{unit}")
            if last is not None and last < first:
                raise ValueError(f"end_{unit} {last} is before start_{unit} {first}, so the set would never be used")
        return self

    @field_validator("text_embeds", "source_dataset_id", mode="before")
    @classmethod
    def _no_id(cls, value: object) -> object:
        return None if is_unset(value) else value

    @field_validator("caption_shuffle", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        return block_of_switch(value)

    @field_validator("conditioning_data", "conditioning", "caption_filter_list", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if is_unset(value) or value is False:
            return ()
        if isinstance(value, str | dict):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    def build(self, cls: builtins.type[OptionsT]) -> OptionsT:
        """Return the options object of a plugin's class, built from the keys that the entry sets.

        Raises:
            pydantic.ValidationError: If the class refuses the combination of values.
        """
        return pick_options(self, cls)

    @property
    def is_reference(self) -> bool:
        return self.dataset_type == "conditioning" or self.conditioning_type is not None
