"""Recognises a model from its small files: another model, or the FLUX.1 flavours that its weights may belong to.

Light: no torch. The core compares the facts with the flavours' `weights`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftrain import ModelError

INDEX = "model_index.json"
TRANSFORMER_CONFIG = "transformer/config.json"
MODEL_CARD = "README.md"
SMALL_FILES = (INDEX, TRANSFORMER_CONFIG, MODEL_CARD)
TRANSFORMER_CLASS = "FluxTransformer2DModel"
TOKEN_CHANNELS = 64
"""Token channels of models whose only input is tokens; Fill and the control models take more."""

TEXT_PIPELINES = (
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxControlNetPipeline",
    "FluxControlNetImg2ImgPipeline",
    "FluxControlNetInpaintPipeline",
)
"""Diffusers classes that text-to-image checkpoints are saved by."""
SIBLINGS: Mapping[str, str] = {
    "FluxFillPipeline": "FLUX.1 Fill",
    "FluxControlPipeline": "FLUX.1 Depth or Canny",
    "FluxControlImg2ImgPipeline": "FLUX.1 Depth or Canny",
    "FluxControlInpaintPipeline": "FLUX.1 Depth or Canny",
    "FluxPriorReduxPipeline": "FLUX.1 Redux",
}
"""FLUX.1 models that no flavour trains, by the class that they are saved by."""
SIBLING_IDS: Mapping[str, str] = {
    "black-forest-labs/flux.1-fill-dev": "FLUX.1 Fill",
    "black-forest-labs/flux.1-depth-dev": "FLUX.1 Depth",
    "black-forest-labs/flux.1-canny-dev": "FLUX.1 Canny",
    "black-forest-labs/flux.1-redux-dev": "FLUX.1 Redux",
    "black-forest-labs/flux.2-dev": "FLUX.2",
}
"""The same by hub id, in lower case, so that nobody accepts a licence only to be refused afterwards."""
WIDER: Mapping[int, str] = {128: "FLUX.1 Depth or Canny", 384: "FLUX.1 Fill"}
"""The same by the number of channels that their transformer takes."""

_SAVED_BY = re.compile(r"Flux(?!\d)")
"""Start of class names that save FLUX.1 models; those of FLUX.2 have the number."""
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<yaml>.*?)\n---", re.DOTALL)
_BASE_MODEL = re.compile(r"^base_model:(?P<value>[^\n]*(?:\n[ \t]*-[^\n]*)*)", re.MULTILINE)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Fields of a `ModelLocation` with the same names."""

    facts: Mapping[str, str]
    origins: tuple[str, ...]


def identify(where: str, index: Mapping[str, Any], config: Mapping[str, Any], card: str) -> Identity:
    """Recognise a model from its small files; pass an empty one for a file that does not exist.

    Args:
        where: Name of the model for messages.
        index: Content of `model_index.json`.
        config: Content of the transformer's `config.json`.
        card: The model card, starting with its metadata.

    Raises:
        ModelError: If no flavour can train it; says which model it is.
    """
    check_index(where, index)
    channels = config.get("in_channels", TOKEN_CHANNELS)
    if channels != TOKEN_CHANNELS:
        other_model = next((name for wider, name in WIDER.items() if wider == channels), "another model")
        raise ModelError(
            no_flavour(where, f"{other_model} (its transformer takes {channels} channels, not {TOKEN_CHANNELS})")
        )
    facts: dict[str, str] = {}
    if isinstance(index.get("_class_name"), str):
        facts["pipeline"] = index["_class_name"]
    if config:  # diffusers' own default is false
        facts["guidance_embeds"] = "true" if config.get("guidance_embeds", False) else "false"
    named = [index.get("_name_or_path"), *_base_models(card), config.get("_name_or_path")]
    return Identity(facts=facts, origins=tuple(dict.fromkeys(name for name in named if isinstance(name, str) and name)))


def check_hub_id(hub_id: str) -> None:
    """Refuse models that are known by their id alone.

    Raises:
        ModelError: Says which model it is.
    """
    if what := SIBLING_IDS.get(hub_id.lower()):
        raise ModelError(no_flavour(f"hub model {hub_id!r}", what))


def check_index(where: str, index: Mapping[str, Any]) -> None:
    """Check that the index does not belong to another model; an index that names nothing is accepted.

    Raises:
        ModelError: Says which model it is.
    """
    pipeline = str(index.get("_class_name", ""))
    if pipeline in SIBLINGS:
        raise ModelError(no_flavour(where, f"{SIBLINGS[pipeline]} (a {pipeline})"))
    entry = index.get("transformer")
    class_name = entry[-1] if isinstance(entry, list) and entry else None
    if class_name == TRANSFORMER_CLASS or (class_name is None and (not pipeline or _SAVED_BY.match(pipeline))):
        return
    raise ModelError(
        f"{where} is a {pipeline or 'model of another kind'} (transformer: {class_name or 'none'}), but model_family "
        f"flux needs a model with a {TRANSFORMER_CLASS}\n"
        "hint: name a FLUX.1 model, or set model_family to the family of this one (`difftrain plugins` lists them)"
    )


def read_card(folder: Path) -> str:
    """Return the model card; empty if it cannot be read, because it gives only hints."""
    try:
        return (folder / MODEL_CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _base_models(card: str) -> list[str]:
    """Return the hub ids in `base_model` of a card's metadata, one or a list."""
    front = _FRONT_MATTER.match(card)
    match = _BASE_MODEL.search(front["yaml"]) if front else None
    return _HUB_ID.findall(match["value"]) if match else []


def no_flavour(where: str, what: str) -> str:
    """Return the message about a model that no flavour trains."""
    return (
        f"{where} is {what}, which no flavour of model_family flux trains\n"
        "hint: name the weights of the flavour that you want to train, or leave pretrained_model_name_or_path out"
    )
