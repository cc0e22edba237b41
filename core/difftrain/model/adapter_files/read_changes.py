"""An adapter file of any layout as changes of a model's modules, with all strengths folded in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftrain.errors import CheckpointError, first_few
from difftrain.model.adapter_files.changes import Change, Factors, LowRank
from difftrain.model.adapter_files.layer_names import Layer, LayerNames
from difftrain.model.adapter_files.tensor_names import is_of_encoder, split_name
from difftrain.model.tensor_file import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS = "lora_adapter_metadata"
"""Entry of a file's header where diffusers keeps an adapter's settings."""
PUBLIC_TEXTS = ("modelspec.", "ss_base_model_version")
"""Start of the names of a header's texts that stay with the adapter. Others tell paths of whoever trained it."""
OWN_TEXTS = ("trained_with", "base_model", "training.")
"""The same for files that difftrain wrote, whose every text is public: base model, its precision, the training."""
OF_ONE_FILE = ("modelspec.hash_sha256", "modelspec.implementation")
"""Those that are true of one file alone."""
_RANKED = ("lokr_w2_a", "lokr_w1_a", "hada_w1_a")
"""Factors whose last dimension is the rank that alpha is divided by."""


@dataclass(frozen=True, kw_only=True)
class AdapterContent:
    """The changes of an adapter file, by full names of modules."""

    changes: Mapping[str, Change]
    encoder_tensors: tuple[str, ...] = ()
    """Names of tensors for text encoders, which are left out of the changes."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What the header says of the adapter's model and purpose, for every layout."""


def read_changes(path: Path, names: LayerNames) -> AdapterContent:
    """Read a file.

    Rows of a fused layer that the file leaves as they are, because all their weights are zero, are no change.

    Raises:
        CheckpointError: If it is no adapter, or one for other layers, or has parts that are not known here.
        OSError: If it cannot be read.
    """
    tensors, header = read_tensors(path)
    layers: dict[str, dict[str, Tensor]] = {}
    strange, encoders = [], []
    for name, tensor in tensors.items():
        parts = split_name(name, names.prefix)
        if is_of_encoder(name):
            encoders.append(name)
        elif parts is None:
            strange.append(name)
        else:
            layers.setdefault(parts.layer, {})[parts.factor] = tensor
    found = {written: names.find(written) for written in layers}
    unknown = [written for written, layer in found.items() if layer is None]
    if strange or unknown or not layers:
        raise CheckpointError(_not_ours(path, strange, unknown, len(tensors)))
    settings = _settings(header)
    changes: dict[str, Change] = {}
    for written, factors in layers.items():
        layer = found[written]
        assert layer is not None, "unknown ones are refused above"
        changes.update(_of_modules(_change(path, layer, factors, settings, names.prefix), layer))
    return AdapterContent(changes=changes, encoder_tensors=tuple(encoders), texts=texts_to_keep(header))


def texts_to_keep(header: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of a file's header that are true of another file with the same weights too."""
    kept = (*PUBLIC_TEXTS, *(OWN_TEXTS if header.get("trained_with") == "difftrain" else ()))
    return {key: text for key, text in header.items() if key.startswith(kept) and key not in OF_ONE_FILE}


def _not_ours(path: Path, strange: list[str], unknown: list[str], count: int) -> str:
    if strange or not unknown:
        return (
            f"{path} is not an adapter that is known here: {len(strange)} of its {count} tensors have other names: "
            f"{first_few(strange) or 'it has none'}\nhint: `difftrain identify {path}` says what it is"
        )
    return (
        f"{path} changes {len(unknown)} layers that this model does not have: {first_few(unknown)}\n"
        f"hint: `difftrain identify {path}` says what it is for"
    )


def _change(
    path: Path, layer: Layer, factors: Mapping[str, Tensor], settings: Mapping[str, Any], prefix: str
) -> Change:
    """Return the change of one layer as the file has it.

    Raises:
        CheckpointError: If factors are missing.
    """
    given = {name: tensor for name, tensor in factors.items() if name != "alpha"}
    alpha = float(factors["alpha"]) if "alpha" in factors else None
    if "diff_b" in given and given.keys() != {"diff", "diff_b"}:
        raise CheckpointError(
            f"{path}: layer {layer.name} has a change of its bias (diff_b) that is no part of a full change, which no "
            "adapter here can hold\nhint: leave these tensors out of the file"
        )
    if {"down", "up"} <= given.keys():
        shapes = [list(given[name].shape) for name in ("down", "up")]
        if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][1]:
            raise CheckpointError(
                f"{path}: layer {layer.name} has matrices {shapes[0]} and {shapes[1]}, which have no common rank\n"
                "hint: save it again"
            )
        down, up = (given[name].flatten(1) for name in ("down", "up"))
        rank = down.shape[0]
        scale = (_alpha_in(settings, prefix, layer.name, rank) if alpha is None else alpha) / rank
        lengths = given["lengths"].flatten() if "lengths" in given else None
        # float32, because the strength may not be exact in the trained dtype
        return LowRank(down=down, up=up if scale == 1 else up.float() * scale, lengths=lengths)
    if _is_complete(given):
        ranks = [given[name].shape[-1] for name in _RANKED if name in given]
        return Factors(tensors=given, scale=alpha / ranks[0] if ranks and alpha is not None else 1.0)
    has = ", ".join(sorted(factors))
    raise CheckpointError(f"{path}: layer {layer.name} has only {has}; other factors are missing\nhint: save it again")


def _is_complete(given: Mapping[str, Tensor]) -> bool:
    if any(name.startswith("lokr") for name in given):
        return all(f"lokr_{w}" in given or {f"lokr_{w}_a", f"lokr_{w}_b"} <= given.keys() for w in ("w1", "w2"))
    return given.keys() in ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"diff"}, {"diff", "diff_b"})


def _of_modules(change: Change, layer: Layer) -> dict[str, Change]:
    """Divide the change of a fused layer among its modules by rows."""
    if layer.halves_swapped:
        return {layer.modules[0]: swapped_halves(change)}
    if len(layer.modules) == 1:
        return {layer.modules[0]: change}
    total = len(change.up if isinstance(change, LowRank) else change.delta())
    unit, first, found = total // sum(layer.rows), 0, {}
    for module, share in zip(layer.modules, layer.rows, strict=True):
        part = change.rows(first, first := first + share * unit)
        if not isinstance(part, LowRank) or bool(part.up.any()):
            found[module] = part
    return found


def swapped_halves(change: Change) -> Change:
    """Return the change of a layer whose two halves of rows are in the other order."""
    import torch

    def swapped(tensor: Tensor) -> Tensor:
        first, second = tensor.chunk(2)
        return torch.cat([second, first])

    if isinstance(change, Factors):
        bias = change.bias()
        tensors = {"diff": swapped(change.delta())} | ({} if bias is None else {"diff_b": swapped(bias)})
        return Factors(tensors=tensors)
    lengths = None if change.lengths is None else swapped(change.lengths)
    return LowRank(down=change.down, up=swapped(change.up), lengths=lengths)


def _settings(header: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        found = json.loads(header.get(SETTINGS, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _alpha_in(settings: Mapping[str, Any], prefix: str, layer: str, rank: int) -> float:
    """Return a layer's alpha from the header's settings; its rank if they say nothing, as all programs assume.

    Source of ``use_rslora``, alpha / sqrt(rank): Kalajdzievski, rsLoRA, arXiv:2312.03732, section 3.
    """
    own = settings.get(f"{prefix}.alpha_pattern")
    own = own.get(layer) if isinstance(own, dict) else None
    alpha = settings.get(f"{prefix}.lora_alpha") if own is None else own
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return rank
    return alpha * (math.sqrt(rank) if settings.get(f"{prefix}.use_rslora") else 1.0)
