"""Checks what a FLUX.1 folder in diffusers layout must contain. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difftrain import ModelError, check_complete, read_json
from difftrain_flux.model_files.identify import (
    INDEX,
    TRANSFORMER_CLASS,
    TRANSFORMER_CONFIG,
    Identity,
    check_index,
    identify,
    read_card,
)

TEXT_COMPONENTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
IMAGE_COMPONENTS = ("vae",)
OTHER_COMPONENTS = (*IMAGE_COMPONENTS, *TEXT_COMPONENTS, "scheduler")
"""All but the denoiser."""
COMPONENTS = ("transformer", *OTHER_COMPONENTS)
WEIGHTED = ("transformer", "vae", "text_encoder", "text_encoder_2")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "transformer": ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim"),
    "vae": ("block_out_channels", "latent_channels", "scaling_factor", "shift_factor"),
    "text_encoder": ("hidden_size", "num_hidden_layers"),
    "text_encoder_2": ("d_model", "num_layers"),
    "scheduler": ("_class_name",),
}
"""Keys that every saved config has. For missing keys the stock classes use their own defaults, and then the weights
do not fit, or images are drawn differently."""


def identify_folder(folder: Path, components: Sequence[str] = COMPONENTS) -> Identity:
    """Recognise a model from a folder's small files, after checking that the folder is complete.

    Args:
        components: Those that it needs: all, or all but the transformer, which is then not looked at.

    Raises:
        ModelError: If it is another model, parts of it are missing, or one of these files is damaged.
    """
    where = f"model folder {folder}"
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else {}
    check_index(where, index)  # first: another model has other components, which are not "missing"
    check_complete(folder, components, WEIGHTED, NEEDED)
    config = read_json(folder / TRANSFORMER_CONFIG) if "transformer" in components else {}
    check_class(where, config)
    return identify(where, index, config, read_card(folder))


def check_class(where: str, config: Mapping[str, Any]) -> None:
    """Check that a transformer's config is not another architecture's.

    Raises:
        ModelError: Names the class.
    """
    class_name = config.get("_class_name", TRANSFORMER_CLASS)
    if class_name != TRANSFORMER_CLASS:
        raise ModelError(
            f"{where}: the transformer is a {class_name}, but model_family flux needs a {TRANSFORMER_CLASS}"
        )


def identify_snapshot(hub_id: str, snapshot: Path) -> Identity:
    """Recognise a hub model from those of its small files that exist.

    Raises:
        ModelError: If it is another model, or one of the files is damaged.
    """
    index, config = (
        read_json(snapshot / name) if (snapshot / name).exists() else {} for name in (INDEX, TRANSFORMER_CONFIG)
    )
    return identify(f"hub model {hub_id!r}", index, config, read_card(snapshot))
