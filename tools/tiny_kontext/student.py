"""The trained parts, transformer and text encoders, around difftrain's own forward; and the frozen VAE before it."""

from __future__ import annotations

from pathlib import Path

import architecture
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from training import load_averaged

from difftrain.types import Batch, NoisyBatch
from difftrain_flux.family import FluxFamily
from difftrain_flux_kontext.flavour import Kontext

SHIFT = 1.6
"""Shift of the noise levels: about what the pipelines draw with at these sizes."""


class Student(nn.Module):
    """Transformer and text encoders in one module, so that one wrapper spreads them over several cards."""

    def __init__(self, transformer: nn.Module, clip: nn.Module, t5: nn.Module) -> None:
        super().__init__()
        self.transformer, self.text_encoder, self.text_encoder_2 = transformer, clip, t5
        self.family = FluxFamily(
            flux_guidance_mode="random-range", flux_guidance_max=4.0, flow_schedule_shift=SHIFT
        )  # the guidance embedding should have no effect
        self.flavour = Kontext()

    def forward(self, noisy: NoisyBatch, references: list[Tensor], clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Return the velocity of the target, [B, 16, h, w], by the path that difftrain trains with."""
        text = {
            "prompt_embeds": self.text_encoder_2(t5_ids)[0],
            "pooled_prompt_embeds": self.text_encoder(clip_ids).pooler_output,
        }
        batch = Batch(latents=noisy.noisy, references=references, text=text)
        model_input = self.family.build_input(noisy, batch, self.transformer)
        if references:
            model_input = self.flavour.extend_input(self.family, model_input, batch)
        return self.family.predict(self.transformer, model_input)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Return the parts by their names in a pipeline folder."""
        names = ("transformer", "text_encoder", "text_encoder_2")
        return {name: getattr(self, name) for name in names}


def new_student(tokenizers: tuple[Tokenizer, Tokenizer]) -> Student:
    """Return random weights, from the CPU's generator: the same wherever they are trained."""
    clip, t5 = tokenizers
    return Student(
        _start_as_identity(architecture.build_transformer()),
        architecture.build_clip(clip.get_vocab_size(), clip.token_to_id(architecture.CLIP_EOS)),
        architecture.build_t5(t5.get_vocab_size()),
    )


def student_of(folder: Path) -> Student:
    """Return the weights of a pipeline folder, in float32."""
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    return Student(
        FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32),
        T5EncoderModel.from_pretrained(folder, subfolder="text_encoder_2", dtype=torch.float32),
    ).train()


def _start_as_identity(transformer: nn.Module) -> nn.Module:
    """Start with no modulation, no gate, no prediction (arXiv:2212.09748, adaLN-Zero)."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or (".linear" in name and "norm" in name)):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


class LatentEncoder:
    """The frozen VAE's encoder: images to normalised posterior means."""

    def __init__(self, vae: nn.Module, shift: float, scale: float, device: torch.device) -> None:
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.encoder = vae.encoder.to(device, self.dtype, memory_format=torch.channels_last).requires_grad_(False)
        self.shift, self.scale = shift, scale

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Encode [B, 3, H, W] in [0, 1] to [B, 16, H/8, W/8] float32."""
        pixels = images.to(self.dtype).mul(2).sub(1).to(memory_format=torch.channels_last)
        mean = self.encoder(pixels).chunk(2, dim=1)[0].float()
        return (mean - self.shift) * self.scale


def encoder_of_state(state: tuple[dict, dict], device: torch.device) -> LatentEncoder:
    """Return the encoder with the averaged weights in a training state."""
    tensors, facts = state
    vae = architecture.build_vae()
    load_averaged(tensors, {"vae": vae})
    return LatentEncoder(vae, float(facts["shift_factor"]), float(facts["scaling_factor"]), device)


def encoder_of(folder: Path, device: torch.device) -> LatentEncoder:
    """Return the encoder of a pipeline folder."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    return LatentEncoder(vae, vae.config.shift_factor, vae.config.scaling_factor, device)
