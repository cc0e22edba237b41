"""Checks a data source's listing against its contract before any image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from difftrain.contracts import Listing
from difftrain.data.entries.data_plan import DatasetPlan
from difftrain.errors import DataError, DifftrainError, PluginError, first_few


def survey(plan: DatasetPlan, written: Mapping[str, Path]) -> Listing:
    """Return the images of a dataset and what else its source reports; turn a source's failures into plugin errors.

    Args:
        written: Folders that runs write, by name; files there are not data.

    Raises:
        DataError: If the source does not exist or has no images, or gives one key to several.
        PluginError: If the source fails or breaks its contract.
    """
    who = f"data source {plan.source.name!r}"
    try:
        listing = plan.source.survey(written)
    except DifftrainError:
        raise
    except Exception as error:  # third-party plugin code may raise anything
        raise PluginError(f"dataset {plan.id!r}: {who} failed: {type(error).__name__}: {error}") from error
    if not listing.images and not listing.unusable:
        raise DataError(_all_left_out(plan, listing) if any(listing.left_out.values()) else f"{who} has no images")
    if len({image.key for image in listing.images}) < len(listing.images):
        counts = Counter(image.key for image in listing.images)
        names = first_few(key for key, count in counts.items() if count > 1)
        raise DataError(f"{who} gives one key to several images: {names}")
    if not plan.source.gives_references and any(image.references for image in listing.images):
        raise PluginError(
            f"dataset {plan.id!r}: {who} gives references with its images but does not declare it\n"
            f"hint: set gives_references = True on {type(plan.source).__qualname__}"
        )
    return listing


def _all_left_out(plan: DatasetPlan, listing: Listing) -> str:
    counts = ", ".join(f"{option} {len(keys)}" for option, keys in listing.left_out.items() if keys)
    total = sum(map(len, listing.left_out.values()))
    return (
        f"all {total} images of {plan.source.place} are left out: {counts}\n"
        "hint: ask for less, or check the spelling of what is asked for"
    )
