"""Encoders and sampler around the classes of transformers and diffusers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

import difftrain as dt

TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
DROPPED = 64
"""Tokens at the start of the template that the transformer does not get."""
IMAGE_TOKEN = "<|image_pad|>"


class QwenTextEncoder(dt.TextEncoder):
    """Qwen2.5-VL, which reads a caption together with its references."""

    def __init__(self, folder: Path, image: str, device: torch.device, dtype: torch.dtype) -> None:
        """Take in ``image`` the text that contains a reference; its number goes into the braces."""
        with dt.loading(folder / "text_encoder"):
            whole = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder, subfolder="text_encoder", dtype=dtype, device_map={"": device}
            )
        self._model, self._placeholder = whole.model.requires_grad_(False).eval(), image  # no language head
        self._tokenizer = transformers.Qwen2Tokenizer.from_pretrained(folder, subfolder="tokenizer")
        self._images = transformers.Qwen2VLImageProcessor.from_pretrained(folder, subfolder="processor")

    def models(self) -> list[nn.Module]:
        return [self._model]

    @torch.no_grad()
    def encode(
        self, captions: Sequence[str], references: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[dt.TextEmbeds]:
        """Return ``prompt_embeds`` [T, D] of each, one by one: T depends on the caption and its references' sizes."""
        return [self._encode(*pair) for pair in zip(captions, references or [()] * len(captions), strict=True)]

    def _encode(self, caption: str, images: Sequence[Image.Image]) -> dt.TextEmbeds:
        # like Qwen2VLProcessor, which requires torchvision for videos
        seen = dict(self._images(images=list(images), return_tensors="pt")) if images else {}
        placeholders = ""
        for number, patches in enumerate(seen.get("image_grid_thw", ()), start=1):
            count = int(patches.prod()) // self._images.merge_size**2
            placeholders += self._placeholder.format(number).replace(IMAGE_TOKEN, IMAGE_TOKEN * count)
        tokens = self._tokenizer(TEMPLATE.format(placeholders + caption), return_tensors="pt")
        inputs = {name: tensor.to(self._model.device) for name, tensor in {**tokens, **seen}.items()}
        return {"prompt_embeds": self._model(**inputs).last_hidden_state[0, DROPPED:].cpu()}


class QwenImageEncoder(dt.ImageEncoder):
    """The VAE, for one frame; latents are normalised by a mean and a standard deviation per channel."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, *, tiling: bool, slicing: bool) -> None:
        with dt.loading(folder / "vae"):
            vae = diffusers.AutoencoderKLQwenImage.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        self.vae = vae.to(device).requires_grad_(False).eval()
        self.vae.use_tiling, self.vae.use_slicing = tiling, slicing

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each [B, 16, 1, H/8, W/8]."""
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype).unsqueeze(2)).latent_dist
        config, mode = self.vae.config, posterior.mode()
        shift, scale = (torch.tensor(by).view(-1, 1, 1, 1).to(mode) for by in (config.latents_mean, config.latents_std))
        mean, std = ((mode - shift) / scale).cpu(), (posterior.std / scale).cpu()
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise dt.ModelError(f'latents in {self.vae.dtype} are not finite\nhint: set vae_dtype to "bf16" or "fp32"')
        return mean, std

    def move(self, device: torch.device) -> None:
        self.vae.to(device)


def pipeline_sampler(
    flavour: dt.ModelFlavour, denoiser: nn.Module, encoder: Any, folder: Path, device: torch.device, dtype: torch.dtype
) -> dt.Sampler:
    """Return the stock pipelines around the transformer in training, with the checkpoint's own scheduler."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    parts = {"transformer": denoiser, "scheduler": scheduler, "vae": encoder.vae}
    parts |= dict.fromkeys(("text_encoder", "tokenizer"))
    edit = getattr(diffusers, flavour.weights["pipeline"][0])(**parts, processor=None)

    def arguments(request: dt.ValidationRequest) -> dict[str, Any]:
        given: dict[str, Any] = {"width": request.width, "height": request.height}
        given["true_cfg_scale"] = request.guidance_real
        for prefix, text in (("", request.text), ("negative_", request.negative_text)):
            if text is not None:
                length = len(text["prompt_embeds"])
                given[f"{prefix}prompt_embeds_mask"] = torch.ones(1, length, dtype=torch.bool, device=device)
        if request.references:
            given["image"] = list(request.references) if flavour.max_references > 1 else request.references[0]
        return given

    # the pipelines that edit cannot do without a reference
    of_text = diffusers.QwenImagePipeline(**parts)
    sampler = dt.PipelineSampler(edit, arguments, device=device, dtype=dtype, without_references=of_text)

    def draw(request: dt.ValidationRequest) -> Image.Image:
        with small_references(edit, request.width * request.height):
            return sampler(request)

    return draw


@contextmanager
def small_references(pipeline: Any, area: int) -> Iterator[None]:
    """Stop the pipeline from enlarging references to a megapixel if the image is below 512x512, for quick tries."""
    module: Any = sys.modules[type(pipeline).__module__]
    stock = module.calculate_dimensions
    if area < 512 * 512:
        module.calculate_dimensions = lambda asked, aspect: stock(min(asked, area), aspect)
    try:
        yield
    finally:
        module.calculate_dimensions = stock
