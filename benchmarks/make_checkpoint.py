"""Write a full-size FLUX.1 Kontext with random weights, in diffusers layout: for speed and memory, not for images.

usage: python benchmarks/make_checkpoint.py FOLDER        (about 34 GB; needs a GPU with 30 GB to be quick)

Sizes are those of black-forest-labs/FLUX.1-Kontext-dev: 11.9 G transformer, 4.8 G T5-XXL encoder, CLIP-L, the VAE.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from difftrain_flux.built_in import tiny_random_folder
from difftrain_flux.model_files.tiny_random import ensure_tiny_random


def build(name: str) -> torch.nn.Module:
    """Return one component with its published sizes."""
    if name == "transformer":
        return FluxTransformer2DModel(guidance_embeds=True)
    if name == "vae":
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    if name == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    return T5EncoderModel(
        T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, d_kv=64, feed_forward_proj="gated-gelu")
    )


def main(folder: Path) -> None:
    """Write the checkpoint; tokenizers and scheduler come from the built-in tiny-random, the rest is made here."""
    shutil.copytree(ensure_tiny_random(tiny_random_folder()), folder, dirs_exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        started = time.monotonic()
        shutil.rmtree(folder / name)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            part = build(name)
        torch.set_default_dtype(torch.float32)
        part.save_pretrained(folder / name, max_shard_size="10GB")
        count = sum(parameter.numel() for parameter in part.parameters())
        print(f"{name}: {count / 1e9:.2f} G weights, {time.monotonic() - started:.0f} s", flush=True)
        del part
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
