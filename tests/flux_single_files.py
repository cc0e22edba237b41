"""FLUX.1 transformers in one file, written the other way round than they are loaded: for tests."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from difftrain_flux.built_in import TINY_FOLDER

FP8 = torch.float8_e4m3fn


def tiny_state() -> dict[str, Tensor]:
    """Return the built-in model's transformer as its file has it, in diffusers' layout."""
    (path,) = (TINY_FOLDER / "transformer").glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a transformer's tensors under their original names: the inverse of what diffusers' converter does.

    Written by hand from that converter, not from the tables that the loader uses.
    """
    doubles = {name.split(".")[1] for name in state if name.startswith("transformer_blocks.")}
    singles = {name.split(".")[1] for name in state if name.startswith("single_transformer_blocks.")}
    made: dict[str, Tensor] = {}

    def both(new: str, *old: str) -> None:
        for leaf in ("weight", "bias"):
            made[f"{new}.{leaf}"] = torch.cat([state[f"{name}.{leaf}"] for name in old])

    for new, old in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        if f"time_text_embed.{old}_embedder.linear_1.weight" in state:
            both(f"{new}.in_layer", f"time_text_embed.{old}_embedder.linear_1")
            both(f"{new}.out_layer", f"time_text_embed.{old}_embedder.linear_2")
    both("img_in", "x_embedder")
    both("txt_in", "context_embedder")
    for n in doubles:
        block, old = f"double_blocks.{n}", f"transformer_blocks.{n}"
        for side, context, added in (("img", "", ""), ("txt", "_context", "added_")):
            q, k, v = ("to_q", "to_k", "to_v") if side == "img" else ("add_q_proj", "add_k_proj", "add_v_proj")
            both(f"{block}.{side}_mod.lin", f"{old}.norm1{context}.linear")
            both(f"{block}.{side}_attn.qkv", f"{old}.attn.{q}", f"{old}.attn.{k}", f"{old}.attn.{v}")
            both(f"{block}.{side}_attn.proj", f"{old}.attn.{'to_out.0' if side == 'img' else 'to_add_out'}")
            both(f"{block}.{side}_mlp.0", f"{old}.ff{context}.net.0.proj")
            both(f"{block}.{side}_mlp.2", f"{old}.ff{context}.net.2")
            for norm, letter in (("query", "q"), ("key", "k")):
                made[f"{block}.{side}_attn.norm.{norm}_norm.scale"] = state[f"{old}.attn.norm_{added}{letter}.weight"]
    for n in singles:
        block, old = f"single_blocks.{n}", f"single_transformer_blocks.{n}"
        both(f"{block}.modulation.lin", f"{old}.norm.linear")
        both(f"{block}.linear1", f"{old}.attn.to_q", f"{old}.attn.to_k", f"{old}.attn.to_v", f"{old}.proj_mlp")
        both(f"{block}.linear2", f"{old}.proj_out")
        for norm, letter in (("query", "q"), ("key", "k")):
            made[f"{block}.norm.{norm}_norm.scale"] = state[f"{old}.attn.norm_{letter}.weight"]
    both("final_layer.linear", "proj_out")
    for leaf in ("weight", "bias"):
        scale, shift = state[f"norm_out.linear.{leaf}"].chunk(2)
        made[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    return made


def prefixed(state: dict[str, Tensor], prefix: str = "model.diffusion_model.") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def in_fp8(state: dict[str, Tensor], end: str | None = None) -> dict[str, Tensor]:
    """Return the blocks' matrices in 8 bits, the rest in bfloat16.

    Args:
        end: End of the names of each matrix's factor, ``.scale_weight`` or ``.weight_scale``; None writes none.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim != 2 or "blocks." not in name:
            made[name] = tensor.bfloat16()
            continue
        scale = tensor.float().abs().max() / torch.finfo(FP8).max if end else torch.tensor(1.0)
        made[name] = (tensor.float() / scale).to(FP8)
        if end:
            made[name.removesuffix(".weight") + end] = scale.reshape(())
    return made


def write_empty(path: Path, shapes: dict[str, tuple[int, ...]], *, scaled: bool = False) -> Path:
    """Write a file of zeros with these shapes, in bfloat16 or scaled 8 bits, that takes no room on the disk."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        matrix = scaled and len(shape) == 2
        tensors = {name: ("F8_E4M3" if matrix else "BF16", shape, (1 if matrix else 2) * math.prod(shape))}
        if matrix:
            tensors[name.removesuffix(".weight") + ".scale_weight"] = ("F32", (), 4)
        for each, (dtype, edges, size) in tensors.items():
            header[each] = {"dtype": dtype, "shape": edges, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def save(tensors: dict[str, Tensor], path: Path, **texts: str) -> Path:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=texts or None)
    return path
