"""Images to latents, as the stock pipeline encodes a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftrain import ImageEncoder, ModelError, ModelLocation, loading
from difftrain_flux.model_files.components import local_folder
from difftrain_flux.model_files.folder import IMAGE_COMPONENTS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class FluxImageEncoder(ImageEncoder):
    """The VAE; latents are normalised by one shift and one scale, ``(z - shift_factor) * scaling_factor``."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised mean and standard deviation, each [B, 16, H/8, W/8], on the CPU, in the VAE's dtype.

        It computes in the VAE's dtype and in channels-last layout because the pipeline does: equal bits are
        worth more than the last bit's precision. A batch of one gives the pipeline's bits; in larger ones torch
        may sum in another order.

        Raises:
            ModelError: If the result is not finite, which can happen in float16.
        """
        pixels = pixels.to(self.vae.device, self.vae.dtype).contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pixels).latent_dist
        shift, scale = self.vae.config.shift_factor, self.vae.config.scaling_factor
        mean = (posterior.mode() - shift) * scale
        std = posterior.std * scale
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ModelError(f'latents in {self.vae.dtype} are not finite\nhint: set vae_dtype to "bf16" or "fp32"')
        return mean.cpu(), std.cpu()

    def move(self, device: torch.device) -> None:
        self.vae.to(device)


def load_image_encoder(
    location: ModelLocation, device: torch.device, dtype: torch.dtype, *, tiling: bool, slicing: bool
) -> FluxImageEncoder:
    """Load the VAE.

    Args:
        tiling: Encode large images tile by tile: less memory, slightly different latents at the seams.
        slicing: Encode the images of a batch one by one: less memory, same latents.
    """
    folder = local_folder(location, IMAGE_COMPONENTS)
    from diffusers import AutoencoderKL

    with loading(folder / "vae"):
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
    if tiling:
        vae.enable_tiling()
    if slicing:
        vae.enable_slicing()
    return FluxImageEncoder(vae.to(device).requires_grad_(False).eval())
