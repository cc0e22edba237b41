"""Sizes of a model's cache entries. Light: reads small config files, no torch.

A hub model has no config files before its download; the published FLUX.1 models all have the same shapes.
"""

from __future__ import annotations

from typing import Any

from difftrain import ModelFlavour, ModelLocation, Size, read_json
from difftrain_flux.built_in import TINY_RANDOM, TINY_RANDOM_WIDTH
from difftrain_flux.text_length import text_length

CHANNELS = 16
CELL = 8
"""Edge in pixels of one latent cell."""
T5_WIDTH = 4096
CLIP_WIDTH = 768


def latents_bytes(location: ModelLocation, size: Size, value_bytes: int) -> int:
    """Return the bytes of mean and standard deviation, each [channels, height / 8, width / 8]."""
    config = _config(location, "vae")
    halvings = config.get("block_out_channels")
    cell = 2 ** (len(halvings) - 1) if isinstance(halvings, list) and halvings else CELL
    return 2 * _number(config, "latent_channels", CHANNELS) * (size[0] // cell) * (size[1] // cell) * value_bytes


def text_bytes(location: ModelLocation, flavour: ModelFlavour, value_bytes: int) -> int:
    """Return the bytes of T5's sequence and CLIP's vector."""
    width = _number(_config(location, "text_encoder_2"), "d_model", T5_WIDTH)
    pooled = _number(_config(location, "text_encoder"), "hidden_size", CLIP_WIDTH)
    return (text_length(location, flavour) * width + pooled) * value_bytes


def _number(config: dict[str, Any], key: str, published: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else published


def _config(location: ModelLocation, component: str) -> dict[str, Any]:
    """Return the config; empty if it does not exist yet: the built-in random model is made when first needed."""
    if location.name == TINY_RANDOM:
        return {"d_model": TINY_RANDOM_WIDTH, "hidden_size": TINY_RANDOM_WIDTH}
    path = location.path / component / "config.json" if location.path else None
    return read_json(path) if path and path.is_file() else {}
