"""The stock transformer, built from a model's config without its weights; the core fills it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import init_empty_weights

from difftrain import ModelLocation, loading
from difftrain_flux.model_files.denoiser import config_folder

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel


def empty_transformer(location: ModelLocation, *, cuts_last_block: bool = False) -> FluxTransformer2DModel:
    """Return the transformer with its parameters on the meta device.

    Args:
        cuts_last_block: Whether its last block can leave out tokens that nothing reads afterwards.

    Raises:
        ModelError: If a hub model can be neither downloaded nor found in the cache, or its config is not of this class.
    """
    folder = config_folder(location)
    from diffusers import FluxTransformer2DModel

    from difftrain_flux.transformer.attention import use_fast_rotation
    from difftrain_flux.transformer.last_block import use_last_block

    with loading(folder), init_empty_weights():
        config = FluxTransformer2DModel.load_config(folder)
        transformer = FluxTransformer2DModel.from_config(config)
    use_fast_rotation(transformer)
    if cuts_last_block:
        use_last_block(transformer)
    return transformer
