"""Validation images through the stock pipeline, around the model in training."""

from __future__ import annotations

import torch
from torch import nn

from difftrain import ImageEncoder, ModelFlavour, ModelLocation, PipelineSampler, ValidationRequest, loading
from difftrain_flux.forward import unwrap
from difftrain_flux.model_files.components import local_folder
from difftrain_flux.text_length import text_length
from difftrain_flux.vae import FluxImageEncoder


def make_sampler(
    location: ModelLocation,
    flavour: ModelFlavour,
    denoiser: nn.Module,
    image_encoder: ImageEncoder,
    device: torch.device,
    dtype: torch.dtype,
) -> PipelineSampler:
    """Return the flavour's pipeline over the model in training, with the checkpoint's own scheduler."""
    assert isinstance(image_encoder, FluxImageEncoder), "the encoder is this family's own"
    folder = local_folder(location, ("scheduler",))
    from diffusers import FlowMatchEulerDiscreteScheduler

    with loading(folder / "scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    parts = {"scheduler": scheduler, "vae": image_encoder.vae, "transformer": unwrap(denoiser)}
    tokens = text_length(location, flavour)

    def arguments(request: ValidationRequest) -> dict[str, object]:
        return {
            "width": request.width,
            "height": request.height,
            "guidance_scale": request.guidance,
            "true_cfg_scale": request.guidance_real,
            "max_sequence_length": tokens,
            **flavour.pipeline_arguments(request),
        }

    return PipelineSampler(flavour.pipeline_class()(**parts, **absent), arguments, device=device, dtype=dtype)
