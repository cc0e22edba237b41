"""Validation images through the stock pipeline, around the model in training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from difftrain import ImageEncoder, ModelFlavour, ModelLocation, TextEmbeds, ValidationRequest, loading
from difftrain_flux.forward import unwrap
from difftrain_flux.model_files.components import local_folder
from difftrain_flux.text_length import text_length
from difftrain_flux.vae import FluxImageEncoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from PIL import Image


class FluxSampler:
    """Draws one image per call; the model's training state is the same afterwards."""

    def __init__(
        self,
        *,
        flavour: ModelFlavour,
        text_length: int,
        denoiser: nn.Module,
        vae: AutoencoderKL,
        scheduler: object,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._flavour = flavour
        self._text_length = text_length
        self._vae = vae
        self._transformer = unwrap(denoiser)
        self._device = device
        self._dtype = dtype
        self._pipeline = flavour.pipeline_class()(
            scheduler=scheduler,
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=self._transformer,
        )
        self._pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self, request: ValidationRequest) -> Image.Image:
        """Draw the image of one request; equal seeds give equal starting noise on every device."""
        arguments = {**self._arguments(request), **self._flavour.pipeline_arguments(request)}
        with evaluating(self._transformer), visiting(self._vae, self._device):
            image: Image.Image = self._pipeline(**arguments).images[0]
        return image

    def _arguments(self, request: ValidationRequest) -> dict[str, Any]:
        arguments = {
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "true_cfg_scale": request.guidance_real,
            "max_sequence_length": self._text_length,
            # noise drawn on the CPU is the same for every device
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            **self._batched(request.text),
        }
        if request.negative_text is not None:
            batched = self._batched(request.negative_text)
            arguments |= {f"negative_{name}": tensor for name, tensor in batched.items()}
        return arguments

    def _batched(self, text: TextEmbeds) -> dict[str, torch.Tensor]:
        return {name: tensor[None].to(self._device, self._dtype) for name, tensor in text.items()}


def make_sampler(
    location: ModelLocation,
    flavour: ModelFlavour,
    denoiser: nn.Module,
    image_encoder: ImageEncoder,
    device: torch.device,
    dtype: torch.dtype,
) -> FluxSampler:
    """Return a sampler over the model in training.

    The pipeline passes the VAE tensors of the text's dtype, so a VAE of another dtype is copied to that dtype.
    """
    assert isinstance(image_encoder, FluxImageEncoder), "the encoder is this family's own"
    folder = local_folder(location, ("scheduler",))
    from diffusers import FlowMatchEulerDiscreteScheduler

    with loading(folder / "scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    vae = image_encoder.vae
    return FluxSampler(
        flavour=flavour,
        text_length=text_length(location, flavour),
        denoiser=denoiser,
        vae=vae if vae.dtype == dtype else copy.deepcopy(vae).to(dtype),
        scheduler=scheduler,
        device=device,
        dtype=dtype,
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Turn dropout off inside the context; afterwards restore every submodule's mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move ``module`` to ``device`` inside the context, and back afterwards."""
    home = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
