"""The model by its shapes, without weights, network or anything written, for `difftrain plan`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel

from difftrain import Batch, ModelFlavour, ModelLocation, ModelOutline, Size, read_json
from difftrain_flux.built_in import BUILT_IN, TINY_RANDOM, TINY_RANDOM_IDENTITY, tiny_random_folder
from difftrain_flux.flavours import max_sequence_length
from difftrain_flux.model_files.entry_bytes import CELL, CHANNELS
from difftrain_flux.model_files.locate import locate, locate_with_denoiser
from difftrain_flux.model_files.single_file import recognise
from difftrain_flux.text_length import text_length
from difftrain_flux.transformer.empty_transformer import empty_transformer


def outline(model: str | None, flavour: ModelFlavour, denoiser: str | None = None) -> ModelOutline:
    """Return the shapes of a local or built-in model, or else those of the published checkpoints.

    Args:
        denoiser: A denoiser in another place. With it, the model is the published one unless both are here.

    Raises:
        ModelError: If a local folder or file is not a FLUX.1 model.
    """
    name = model or flavour.hub_id
    if denoiser is not None and os.path.isfile(os.path.expanduser(denoiser)):  # noqa: PTH111, PTH113
        recognise(Path(os.path.expanduser(denoiser)))  # noqa: PTH111
    if name == TINY_RANDOM:
        return _tiny_random(flavour)
    if not _is_here(name) or not (denoiser is None or _is_here(denoiser)):
        with init_empty_weights():
            published = FluxTransformer2DModel(guidance_embeds="true" in flavour.weights.get("guidance_embeds", ()))
        note = f"the model {name} is taken to have the sizes of the published {flavour.name} weights"
        return _outline(published, cell=CELL, text_tokens=max_sequence_length(flavour), note=note)
    location = locate(model, flavour) if denoiser is None else locate_with_denoiser(model, denoiser, flavour)
    return _outline(empty_transformer(location), cell=_cell(location), text_tokens=text_length(location, flavour))


def _is_here(name: str) -> bool:
    return name in BUILT_IN or os.path.exists(os.path.expanduser(name))  # noqa: PTH110, PTH111  # see locate.py


def _tiny_random(flavour: ModelFlavour) -> ModelOutline:
    """Describe the random checkpoint, which may not have been written yet."""
    from difftrain_flux.model_files.tiny_random import tiny_transformer

    with init_empty_weights():
        transformer = tiny_transformer()
    location = ModelLocation(name=TINY_RANDOM, identity=TINY_RANDOM_IDENTITY, path=tiny_random_folder())
    return _outline(transformer, cell=CELL, text_tokens=text_length(location, flavour))


def _cell(location: ModelLocation) -> int:
    assert location.path is not None, "a local model has a folder"
    return int(2 ** (len(read_json(location.path / "vae" / "config.json")["block_out_channels"]) - 1))


def _outline(
    transformer: FluxTransformer2DModel, *, cell: int, text_tokens: int, note: str | None = None
) -> ModelOutline:
    config = transformer.config
    text = {
        "prompt_embeds": (text_tokens, config.joint_attention_dim),
        "pooled_prompt_embeds": (config.pooled_projection_dim,),
    }
    batch = partial(_batch, cell=cell, text=text)
    return ModelOutline(denoiser=transformer, example_batch=batch, note=note)


def _batch(
    target: Size, references: Sequence[Size], count: int, *, cell: int, text: dict[str, tuple[int, ...]]
) -> Batch:
    def latents(size: Size) -> torch.Tensor:
        return torch.empty(count, CHANNELS, size[1] // cell, size[0] // cell, device="meta")

    return Batch(
        latents=latents(target),
        references=[latents(reference) for reference in references],
        text={name: torch.empty(count, *shape, device="meta") for name, shape in text.items()},
    )
