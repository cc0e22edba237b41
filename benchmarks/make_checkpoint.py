"""Write a full-size FLUX.1 Kontext with random weights, in diffusers layout: for speed and memory, not for images.

usage: python benchmarks/make_checkpoint.py FOLDER [--single-file bf16 fp8]
(about 34 GB, and 24 GB for each file in bf16, 12 GB in fp8; needs a GPU with 30 GB to be quick)

Sizes are those of black-forest-labs/FLUX.1-Kontext-dev: 11.9 G transformer, 4.8 G T5-XXL encoder, CLIP-L, the VAE.
`--single-file` also writes the same transformer as FOLDER/flux1-kontext-dev-bf16.safetensors in the original layout,
or in 8 bits with one factor per matrix, as files for ComfyUI have it. Parts that exist are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from difftrain import read_json
from difftrain.model.shards import read_tensor
from difftrain_flux.built_in import tiny_random_folder
from difftrain_flux.model_files.layouts import SWAPPED, original_parts, original_shapes
from difftrain_flux.model_files.tiny_random import ensure_tiny_random

DONE = ".complete"
"""Marks a component that has been written; tiny-random's small ones are in its place before."""


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


def write_single_file(folder: Path, path: Path, *, eight_bits: bool) -> None:
    """Write a folder's transformer as one file in the original layout, holding one tensor at a time."""
    config = read_json(folder / "transformer" / "config.json")
    places: dict[str, Path] = {}
    for shard in sorted((folder / "transformer").glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), shard)
    shapes, parts = original_shapes(config), original_parts(config)
    scaled = {name for name, shape in shapes.items() if eight_bits and len(shape) == 2 and "_blocks." in name}
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        end = announce(header, name, "F8_E4M3" if name in scaled else "BF16", shape, end)
        if name in scaled:
            end = announce(header, name.removesuffix(".weight") + ".scale_weight", "F32", (), end)
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            tensors = [read_tensor(places[part], part) for part in parts[name]]
            if parts[name][0].startswith(SWAPPED):
                tensors = [*reversed(tensors[0].chunk(2))]
            tensor = torch.cat(tensors).to(torch.bfloat16)
            if name in scaled:
                scale = tensor.abs().max().float() / torch.finfo(torch.float8_e4m3fn).max
                out.write(raw((tensor.float() / scale).to(torch.float8_e4m3fn)) + raw(scale))
            else:
                out.write(raw(tensor))


def announce(header: dict[str, object], name: str, dtype: str, shape: tuple[int, ...], start: int) -> int:
    """Add a tensor to a header; return where it ends."""
    end = start + math.prod(shape) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return end


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def main(folder: Path, single_files: Sequence[str]) -> None:
    """Write the checkpoint; tokenizers and scheduler come from the built-in tiny-random, the rest is made here."""
    if not folder.exists():
        shutil.copytree(ensure_tiny_random(tiny_random_folder()), folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        if (folder / name / DONE).is_file():
            continue
        started = time.monotonic()
        shutil.rmtree(folder / name, ignore_errors=True)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            part = build(name)
        torch.set_default_dtype(torch.float32)
        part.save_pretrained(folder / name, max_shard_size="10GB")
        (folder / name / DONE).touch()
        count = sum(parameter.numel() for parameter in part.parameters())
        print(f"{name}: {count / 1e9:.2f} G weights, {time.monotonic() - started:.0f} s", flush=True)
        del part
        torch.cuda.empty_cache()
    for form in single_files:
        started = time.monotonic()
        path = folder / f"flux1-kontext-dev-{form}.safetensors"
        write_single_file(folder, path, eight_bits=form == "fp8")
        print(f"{path}: {path.stat().st_size / 1e9:.1f} GB, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--single-file", nargs="+", choices=("bf16", "fp8"), default=[])
    arguments = parser.parse_args()
    main(arguments.folder, arguments.single_file)
