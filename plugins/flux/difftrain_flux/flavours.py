"""The text-to-image checkpoints of FLUX.1. Light: the pipeline is imported when validation needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from difftrain import ModelFlavour
from difftrain_flux.model_files.identify import TEXT_PIPELINES

T5_TOKENS = 512


def max_sequence_length(flavour: ModelFlavour) -> int:
    """Return the T5 tokens of a prompt: shorter prompts are padded, longer cut. A tokenizer may allow fewer."""
    tokens = flavour.settings.get("max_sequence_length", T5_TOKENS)
    assert isinstance(tokens, int), "flavours of this family give a number"
    return tokens


class TextToImage(ModelFlavour):
    """The base of the text-to-image checkpoints."""

    family: ClassVar[str] = "flux"
    weights: ClassVar[Mapping[str, tuple[str, ...]]] = {"pipeline": TEXT_PIPELINES, "guidance_embeds": ("true",)}

    def pipeline_class(self) -> type:
        from diffusers import FluxPipeline

        pipeline: type = FluxPipeline
        return pipeline


class Dev(TextToImage):
    """Guidance-distilled, the usual base for adapters."""

    name: ClassVar[str] = "dev"
    hub_id: ClassVar[str] = "black-forest-labs/FLUX.1-dev"
    licence_url: ClassVar[str | None] = "https://huggingface.co/black-forest-labs/FLUX.1-dev"


class Krea(TextToImage):
    """Same shape as dev, tuned for natural photographs."""

    name: ClassVar[str] = "krea"
    hub_id: ClassVar[str] = "black-forest-labs/FLUX.1-Krea-dev"
    licence_url: ClassVar[str | None] = "https://huggingface.co/black-forest-labs/FLUX.1-Krea-dev"
    default_guidance: ClassVar[float] = 4.5


class Schnell(TextToImage):
    """Distilled to four steps, without a guidance embedding; made for drawing, not for training."""

    name: ClassVar[str] = "schnell"
    hub_id: ClassVar[str] = "black-forest-labs/FLUX.1-schnell"
    licence_url: ClassVar[str | None] = "https://huggingface.co/black-forest-labs/FLUX.1-schnell"
    distilled_from: ClassVar[str | None] = "black-forest-labs/FLUX.1-dev"
    default_guidance: ClassVar[float] = 0.0
    weights: ClassVar[Mapping[str, tuple[str, ...]]] = {"pipeline": TEXT_PIPELINES, "guidance_embeds": ("false",)}
    settings: ClassVar[Mapping[str, object]] = {"max_sequence_length": 256}
