"""Names and shapes of a FLUX.1 transformer's tensors: those of diffusers, and the original ones of Black Forest Labs.

Light: no torch. The original layout fuses the three inputs of an attention, and in single blocks the feed-forward too,
by rows; it has shift before scale in the last modulation, where diffusers has scale before shift.

Source:
    black-forest-labs/flux 802fb47, src/flux/model.py and modules/layers.py, for the original names; compared with
    diffusers' own converter in tests/unit/test_flux_single_file.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from difftrain import OriginalLayers

Shape = tuple[int, ...]
TIME_CHANNELS = 256
"""Sinusoids of a noise level or guidance value."""
SWAPPED = "norm_out.linear"
"""Module whose two halves have the other order in the original layout."""

OUTER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": SWAPPED,
}
"""Linear layers outside the blocks, by original name."""
DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
"""Linear layers of a double block: by original name, the layers that its rows are, in order."""
DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}
ORIGINAL_LAYERS = OriginalLayers(
    parts={
        **{original: (name,) for original, name in OUTER.items()},
        **{
            f"{original_block}.{{n}}.{original}": tuple(f"{block}.{{n}}.{name}" for name in names)
            for original_block, block, layers in (
                ("double_blocks", "transformer_blocks", DOUBLE),
                ("single_blocks", "single_transformer_blocks", SINGLE),
            )
            for original, names in layers.items()
        },
    },
    rows={"single_transformer_blocks.{n}.proj_mlp": 4},
    halves_swapped=(SWAPPED,),
)
"""The same for adapters, whatever the number of blocks."""


def diffusers_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shape of every tensor of a transformer with this config, by its name in diffusers."""
    shapes: dict[str, Shape] = {}
    for name, (rows, columns) in _linear_layers(config):
        shapes[f"{name}.weight"] = (rows, columns)
        shapes[f"{name}.bias"] = (rows,)
    for prefix, _, norms in _blocks(config):
        shapes |= {f"{prefix}.{norm}.weight": (int(config["attention_head_dim"]),) for norm in norms.values()}
    return shapes


def original_parts(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return for every original tensor name the tensors in diffusers that its rows are, in order."""
    parts: dict[str, tuple[str, ...]] = {}
    for original, name in OUTER.items():
        if config.get("guidance_embeds", False) or not original.startswith("guidance_in"):
            parts |= _both(original, (name,))
    for (prefix, fused, norms), original_prefix in zip(_blocks(config), _original_prefixes(config), strict=True):
        for original, names in fused.items():
            parts |= _both(f"{original_prefix}.{original}", tuple(f"{prefix}.{name}" for name in names))
        for original, norm in norms.items():
            parts[f"{original_prefix}.{original}.scale"] = (f"{prefix}.{norm}.weight",)
    return parts


def original_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shape of every tensor of a transformer with this config, by its original name."""
    shapes = diffusers_shapes(config)
    return {
        original: (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])
        for original, names in original_parts(config).items()
    }


def _both(original: str, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {f"{original}.{leaf}": tuple(f"{name}.{leaf}" for name in names) for leaf in ("weight", "bias")}


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, tuple[str, ...]], Mapping[str, str]]]:
    """Yield each block's name in diffusers, its linear layers and its norms."""
    for index in range(int(config["num_layers"])):
        yield f"transformer_blocks.{index}", DOUBLE, DOUBLE_NORMS
    for index in range(int(config["num_single_layers"])):
        yield f"single_transformer_blocks.{index}", SINGLE, SINGLE_NORMS


def _original_prefixes(config: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"double_blocks.{index}" for index in range(int(config["num_layers"])))
    yield from (f"single_blocks.{index}" for index in range(int(config["num_single_layers"])))


def _linear_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each linear layer's name in diffusers with its outputs and inputs."""
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    channels = int(config.get("in_channels") or 64)
    drawn = int(config.get("patch_size") or 1) ** 2 * int(config.get("out_channels") or channels)
    for name in OUTER.values():
        embeds = name.startswith("time_text_embed.")
        if "guidance" in name and not config.get("guidance_embeds", False):
            continue
        inputs = {
            "x_embedder": channels,
            "context_embedder": int(config.get("joint_attention_dim") or 4096),
            "time_text_embed.text_embedder.linear_1": int(config.get("pooled_projection_dim") or 768),
        }.get(name, TIME_CHANNELS if embeds and name.endswith("linear_1") else width)
        yield name, ({"proj_out": drawn, SWAPPED: 2 * width}.get(name, width), inputs)
    outputs = {"norm1.linear": 6, "norm1_context.linear": 6, "norm.linear": 3, "proj_mlp": 4}
    outputs |= {"ff.net.0.proj": 4, "ff_context.net.0.proj": 4}
    inputs_of = {"ff.net.2": 4, "ff_context.net.2": 4, "proj_out": 5}
    for prefix, fused, _ in _blocks(config):
        for name in (name for names in fused.values() for name in names):
            yield f"{prefix}.{name}", (outputs.get(name, 1) * width, inputs_of.get(name, 1) * width)
