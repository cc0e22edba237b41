"""A FLUX.1 transformer in one safetensors file: recognised by names and shapes, compared with a config, read.

Light: torch is imported when tensors are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftrain import ModelError, WeightFile, open_weight_file
from difftrain_flux.model_files.identify import TOKEN_CHANNELS, WIDER, Identity, no_flavour
from difftrain_flux.model_files.layouts import (
    SWAPPED,
    Shape,
    diffusers_shapes,
    original_parts,
    original_shapes,
)

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
"""Prefixes of a denoiser's names in files of ComfyUI and of programs that save whole pipelines."""
SHOWN = 3
"""Differences in a message."""
OTHER_MODELS: Mapping[str, str] = {
    r"^redux_(up|down)\.": "FLUX.1 Redux",
    r"^double_stream_modulation": "FLUX.2",
    r"^distilled_guidance_layer\.": "Chroma",
    r"^controlnet_": "a ControlNet",
}
"""Pattern of a tensor's name, and the model that has it beside blocks with the same names."""
TITLES = ("modelspec.title", "modelspec.architecture")
"""Texts of a header that name the model."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the parts of a transformer are in a file."""

    name: str
    double: str
    """Pattern of a double block's names."""
    single: str
    image_input: str
    guidance: str
    """Start of the names of the guidance embedding."""


ORIGINAL = Layout(
    name="the original layout",
    double=r"^double_blocks\.(\d+)\.",
    single=r"^single_blocks\.(\d+)\.",
    image_input="img_in.weight",
    guidance="guidance_in.",
)
DIFFUSERS = Layout(
    name="diffusers' layout",
    double=r"^transformer_blocks\.(\d+)\.",
    single=r"^single_transformer_blocks\.(\d+)\.",
    image_input="x_embedder.weight",
    guidance="time_text_embed.guidance_embedder.",
)


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """A file that holds a FLUX.1 transformer, as its names and shapes say."""

    file: WeightFile
    layout: Layout

    @property
    def guided(self) -> bool:
        return any(name.startswith(self.layout.guidance) for name in self.file.weights)

    @property
    def identity(self) -> Identity:
        """What the file says about the flavours that its weights may belong to."""
        origins = [self.file.texts[key] for key in TITLES if self.file.texts.get(key)]
        return Identity(facts={"guidance_embeds": "true" if self.guided else "false"}, origins=tuple(origins))

    def blocks(self, pattern: str) -> int:
        return len({match[1] for name in self.file.weights if (match := re.match(pattern, name))})


def recognise(path: Path) -> SingleFile:
    """Return what a file is, without reading a weight.

    Raises:
        ModelError: If it is anything else than a FLUX.1 transformer that a flavour can train; says what it is.
    """
    file = open_weight_file(path, PREFIXES)
    for pattern, other in OTHER_MODELS.items():
        if any(re.match(pattern, name) for name in file.weights):
            raise ModelError(no_flavour(f"{path}", other))
    found = next((layout for layout in (ORIGINAL, DIFFUSERS) if _has_blocks(file, layout)), None)
    if found is None:
        few = ", ".join(list(file.weights)[:SHOWN]) or "no tensors"
        raise ModelError(
            f"{path} is not a FLUX.1 transformer: it has neither double_blocks and single_blocks, as the original "
            f"layout, nor transformer_blocks and single_transformer_blocks, as diffusers; it has {few}, ...\n"
            "hint: name a file such as flux1-dev.safetensors, or the folder of a model in diffusers layout"
        )
    channels = file.weights[found.image_input].shape[-1] if found.image_input in file.weights else TOKEN_CHANNELS
    if channels != TOKEN_CHANNELS:
        other = WIDER.get(channels, "another model")
        takes = f"{found.image_input} takes {channels} channels, not {TOKEN_CHANNELS}"
        raise ModelError(no_flavour(f"{path}", f"{other} ({takes})"))
    return SingleFile(file=file, layout=found)


def check_fits(single: SingleFile, config: Mapping[str, Any], where: str) -> None:
    """Compare names and shapes of a file with a transformer's config.

    Args:
        where: The config's file or model, for messages.

    Raises:
        ModelError: Names the file, the first tensors that differ, and both shapes.
    """
    wanted = original_shapes(config) if single.layout is ORIGINAL else diffusers_shapes(config)
    there = {name: entry.shape for name, entry in single.file.weights.items()}
    problems = [*_counts(single, config), *_differences(there, wanted)]
    if problems:
        raise ModelError(
            f"{single.file.path} does not fit {where}: {'; '.join(problems)}\n"
            "hint: name the model that this file belongs to with pretrained_model_name_or_path, for its "
            "transformer/config.json; or download the file again"
        )


def read_single_file(single: SingleFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor under its name in diffusers, reading one of the file at a time; parts of it are views.

    Raises:
        ModelError: If the file cannot be read.
    """
    if single.layout is DIFFUSERS:
        yield from single.file.read()
        return
    parts, shapes = original_parts(config), diffusers_shapes(config)
    for original, tensor in single.file.read():
        names = parts[original]
        first = 0
        for name in names:
            part = tensor[first : (first := first + shapes[name][0])]
            yield name, _halves_swapped(part) if name.startswith(SWAPPED) else part
        del tensor, part


def _has_blocks(file: WeightFile, layout: Layout) -> bool:
    return all(any(re.match(pattern, name) for name in file.weights) for pattern in (layout.double, layout.single))


def _counts(single: SingleFile, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield differences that explain many missing tensors at once."""
    for key, pattern, what in (
        ("num_layers", single.layout.double, "double blocks"),
        ("num_single_layers", single.layout.single, "single blocks"),
    ):
        if (count := single.blocks(pattern)) != config[key]:
            yield f"it has {count} {what}, and {key} is {config[key]}"
    wants = bool(config.get("guidance_embeds", False))
    if single.guided != wants:
        has = "a" if single.guided else "no"
        yield f"it has {has} guidance embedding, and guidance_embeds is {'true' if wants else 'false'}"


def _differences(there: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Iterator[str]:
    """Yield one message about each kind of difference, with the first few tensors."""
    shapes = [
        f"{name} is {list(there[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in there and there[name] != shape
    ]
    missing = [name for name in wanted if name not in there]
    unexpected = [name for name in there if name not in wanted]
    for names, said in ((shapes, "{}"), (missing, "{} missing"), (unexpected, "{} unexpected")):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield said.format(", ".join(names[:SHOWN]) + more)


def _halves_swapped(tensor: Tensor) -> Tensor:
    import torch

    shift, scale = tensor.chunk(2)
    return torch.cat([scale, shift])
