"""The sizes that a dataset entry asks for, as rules for the buckets. No IO."""

from __future__ import annotations

from difftrain.config.known_keys import PLAIN_CROP_STYLES
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.types import GeometryRules

LARGEST_MEGAPIXELS = 100.0
"""A larger resolution is surely a mistake, such as pixels given as megapixels."""


def size_rules(config: RunConfig, entry: DatasetConfig, problems: Problems) -> GeometryRules:
    """The sizes that an entry asks for; contradictions become problems.

    Args:
        entry: With what it leaves to the run filled in.
    """
    assert entry.resolution is not None, "filled in from the run"
    assert entry.resolution_type is not None, "filled in from the run"
    _check_sizes(entry, entry.resolution, config.aspect_bucket_alignment, problems)
    return GeometryRules(
        resolution=entry.resolution,
        resolution_type=entry.resolution_type,
        alignment=config.aspect_bucket_alignment,
        crop=entry.crop,
        crop_style=entry.crop_style if entry.crop_style in PLAIN_CROP_STYLES else "focus",
        crop_aspect=entry.crop_aspect,
        crop_aspect_buckets=entry.crop_aspect_buckets,
        maximum_image_size=entry.maximum_image_size,
        target_downsample_size=entry.target_downsample_size,
    )


def _check_sizes(entry: DatasetConfig, resolution: float, alignment: int, problems: Problems) -> None:
    who = f"dataset {entry.id!r}: "
    if entry.resolution_type == "area" and resolution > LARGEST_MEGAPIXELS:
        problems.add(
            f"{who}resolution {resolution:g} with resolution_type area is {resolution:g} megapixels; "
            "for pixels set resolution_type = pixel_area"
        )
    if entry.resolution_type != "area" and resolution**2 / 1e6 > LARGEST_MEGAPIXELS:
        problems.add(
            f"{who}resolution {resolution:g} with resolution_type {entry.resolution_type} is "
            f"{resolution**2 / 1e6:g} megapixels or more; at most {LARGEST_MEGAPIXELS:g} are possible"
        )
    if entry.resolution_type != "area" and resolution < alignment:
        problems.add(
            f"{who}resolution {resolution:g} with resolution_type {entry.resolution_type} is less than one "
            f"step of {alignment} px; for megapixels set resolution_type = area"
        )
    if (entry.maximum_image_size is None) != (entry.target_downsample_size is None):
        problems.add(f"{who}maximum_image_size and target_downsample_size go together; one is missing")
    for low, high in (
        ("target_downsample_size", "maximum_image_size"),
        ("minimum_image_size", "maximum_image_size"),
        ("minimum_aspect_ratio", "maximum_aspect_ratio"),
    ):
        lower, upper = getattr(entry, low), getattr(entry, high)
        if lower is not None and upper is not None and lower > upper:
            problems.add(f"{who}{low} {lower:g} is above {high} {upper:g}")
    if entry.vae_cache_clear_each_epoch and not (entry.crop and "random" in (entry.crop_style, entry.crop_aspect)):
        problems.note(
            f"{who}vae_cache_clear_each_epoch: no effect, its crops are not drawn at random, so the same latents would "
            "be made again"
        )
    if entry.crop and entry.crop_aspect == "closest" and not entry.crop_aspect_buckets:
        problems.add(f"{who}crop_aspect = closest needs crop_aspect_buckets, such as [0.75, 1.0, 1.5]")
