"""Entry point: the family, its checkpoint, and what would do nothing in a config. Light, nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from difftrain import ModelFamily, ModelFlavour, RunConfig, hookimpl
from difftrain_instruct_pix2pix.family import InstructPix2Pix, Original


@hookimpl
def difftrain_model_families() -> Iterable[type[ModelFamily[Any]]]:
    return (InstructPix2Pix,)


@hookimpl
def difftrain_model_flavours() -> Iterable[type[ModelFlavour[Any]]]:
    return (Original,)


@hookimpl
def difftrain_check_config(config: RunConfig) -> Iterable[str]:
    if config.model_family == InstructPix2Pix.name and config.validation_guidance is not None:
        hint = "set validation_guidance_real for the text's guidance, pix2pix_image_guidance for the image's"
        yield f"validation_guidance: {InstructPix2Pix.name} has no guidance embedding to feed it to\nhint: {hint}"
