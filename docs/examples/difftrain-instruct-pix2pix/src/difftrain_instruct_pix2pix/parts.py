"""Encoders, noise and sampler around diffusers' own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

import difftrain as dt

if TYPE_CHECKING:
    from PIL import Image


class ClipTextEncoder(dt.TextEncoder):
    """CLIP and its tokenizer."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        with dt.loading(folder / "text_encoder"):
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
            self.clip = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype).to(device).eval()
        self.max_tokens = self.tokenizer.model_max_length

    def models(self) -> list[nn.Module]:
        return [self.clip]

    def cut_captions(self, captions: Sequence[str]) -> list[str]:
        most = self.tokenizer.model_max_length
        return [caption for caption in captions if len(self.tokenizer(caption, verbose=False).input_ids) > most]

    @torch.no_grad()
    def encode(
        self, captions: Sequence[str], references: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[dt.TextEmbeds]:
        """Return ``prompt_embeds`` [T, D] per caption, one by one: the bits do not depend on the other captions."""
        return [{"prompt_embeds": self._encode(caption)} for caption in captions]

    def _encode(self, caption: str) -> Tensor:
        length = {"padding": "max_length", "max_length": self.max_tokens, "truncation": True}
        tokens = self.tokenizer(caption, return_tensors="pt", **length).to(self.clip.device)
        mask = tokens.attention_mask if getattr(self.clip.config, "use_attention_mask", False) else None
        embeds: Tensor = self.clip(tokens.input_ids, attention_mask=mask)[0][0]
        return embeds.cpu()


class VaeImageEncoder(dt.ImageEncoder):
    """The VAE; normalised latents are its own times ``scaling_factor``."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, *, tiling: bool, slicing: bool) -> None:
        with dt.loading(folder / "vae"):
            vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        self.vae = vae.to(device).requires_grad_(False).eval()
        self.vae.use_tiling, self.vae.use_slicing = tiling, slicing

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each [B, 4, H/8, W/8]."""
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        mean, std = (self.vae.config.scaling_factor * value.cpu() for value in (posterior.mode(), posterior.std))
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise dt.ModelError(f'latents in {self.vae.dtype} are not finite\nhint: set vae_dtype to "bf16" or "fp32"')
        return mean, std

    def move(self, device: torch.device) -> None:
        self.vae.to(device)


class DiscreteNoise(dt.NoiseProcess):
    """``sqrt(a_t) x_0 + sqrt(1 - a_t) n``; the target is n, or the velocity if the checkpoint says v_prediction."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        # the schedule is the same for every class of scheduler that a checkpoint may name
        self.scheduler = diffusers.DDPMScheduler.from_config(config)

    def add_noise(self, latents: Tensor, sigma: Tensor, noise: Tensor) -> dt.NoisyBatch:
        """Give each timestep an equal share of the noise levels, so that uniform levels mean uniform timesteps."""
        steps, latents, noise = self.scheduler.config.num_train_timesteps, latents.float(), noise.float()
        timestep = (sigma.float() * steps).long().clamp(max=steps - 1)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, timestep) if velocity else noise
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        return dt.NoisyBatch(noisy=noisy, sigma=sigma.float(), timestep=timestep, target=target)


def pipeline_sampler(
    flavour: dt.ModelFlavour, unet: nn.Module, vae: Any, scheduler: Path, device: torch.device, dtype: torch.dtype
) -> dt.Sampler:
    """Return the stock pipeline around the U-Net in training, with the checkpoint's own scheduler."""
    kind = getattr(diffusers, dt.read_json(scheduler / "scheduler_config.json")["_class_name"])
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts = {"vae": vae, "unet": unet, "scheduler": kind.from_pretrained(scheduler), **absent}
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)

    def arguments(request: dt.ValidationRequest) -> dict[str, object]:
        return {"guidance_scale": request.guidance_real, **flavour.pipeline_arguments(request)}

    return dt.PipelineSampler(pipeline, arguments, device=device, dtype=dtype)
