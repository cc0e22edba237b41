"""Changes of modules as the tensors of a file in one of the layouts that programs load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from difftrain.errors import CheckpointError, first_few
from difftrain.model.adapter_files.changes import Change, Factors, LowRank
from difftrain.model.adapter_files.layer_names import Layer, LayerNames
from difftrain.model.adapter_files.read_changes import SETTINGS, swapped_halves

if TYPE_CHECKING:
    from torch import Tensor

Format = Literal["diffusers", "comfyui", "bfl", "kohya"]
FORMATS: Mapping[str, str] = {
    "diffusers": "names of diffusers' modules; also for nunchaku and InvokeAI",
    "comfyui": "original names after diffusion_model., LoKr, LoHa and full changes as lycoris_ names",
    "bfl": "original names of Black Forest Labs",
    "kohya": "original names with underscores and alphas, as sd-scripts has them; also for InvokeAI",
}
"""What the files of a layout have."""
Written = tuple[dict[str, "Tensor"], dict[str, str]]
"""Tensors by name, and the texts of the header."""


def tensors_of(changes: Mapping[str, Change], layout: str, names: LayerNames) -> Written:
    """Return what a file of this layout has. Alpha is folded in: strength 1 is the trained strength.

    Raises:
        CheckpointError: If the layout cannot hold these changes.
    """
    factored = {module: change for module, change in changes.items() if isinstance(change, Factors)}
    if factored and (layout != "comfyui" or len(factored) < len(changes)):
        spelled = {"full": "full changes"}
        kinds = " and ".join(sorted({spelled.get(change.kind, change.kind) for change in factored.values()}))
        raise CheckpointError(
            f"--format {layout} cannot hold {kinds}, only LoRA: {len(factored)} layers: {first_few(factored)}\n"
            "hint: add --as_lora RANK to turn it into a LoRA, or choose --format comfyui, which holds LoKr, LoHa "
            "and full changes as they are"
        )
    if factored:
        return _apart(dict(_lycoris(factored))), {}
    low_rank = {module: change for module, change in changes.items() if isinstance(change, LowRank)}
    if layout == "diffusers":
        return _diffusers(low_rank, names.prefix)
    if lengths := [module for module, change in low_rank.items() if change.lengths is not None]:
        raise CheckpointError(
            f"--format {layout} cannot hold the lengths of a DoRA, which {len(lengths)} layers have\n"
            "hint: choose --format diffusers"
        )
    if layout == "bfl" and not names.has_originals:
        raise CheckpointError("--format bfl: this family has no original names\nhint: choose --format diffusers")
    return _apart(dict(_original(low_rank, layout, names))), {}


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, which safetensors refuses: those of one fused layer have one ``down``."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _diffusers(changes: Mapping[str, LowRank], prefix: str) -> Written:
    """One rank for all: with several, programs that read no header apply a wrong strength."""
    rank = max(change.rank for change in changes.values())
    tensors = {}
    for module, change in changes.items():
        padded = _padded(change, rank)
        tensors[f"{prefix}.{module}.lora_A.weight"] = padded.down
        tensors[f"{prefix}.{module}.lora_B.weight"] = padded.up
        if change.lengths is not None:
            tensors[f"{prefix}.{module}.lora_magnitude_vector"] = change.lengths
    settings = {"r": rank, "lora_alpha": rank, "target_modules": sorted(changes), "bias": "none"}
    settings |= {"use_dora": True} if any(change.lengths is not None for change in changes.values()) else {}
    header = json.dumps({f"{prefix}.{key}": value for key, value in settings.items()}, sort_keys=True)
    return _apart(tensors), {SETTINGS: header}


def _padded(change: LowRank, rank: int) -> LowRank:
    import torch

    more = rank - change.rank
    if not more:
        return change
    down = torch.cat([change.down, change.down.new_zeros(more, change.down.shape[1])])
    return LowRank(down=down, up=torch.cat([change.up, change.up.new_zeros(len(change.up), more)], dim=1))


def _lycoris(changes: Mapping[str, Factors]) -> Iterator[tuple[str, Tensor]]:
    import torch

    for module, change in changes.items():
        flat = f"lycoris_{module.replace('.', '_')}"
        if change.span is not None:
            yield f"{flat}.diff", change.delta()
            if (bias := change.bias()) is not None:
                yield f"{flat}.diff_b", bias
            continue
        ranks = [tensor.shape[-1] for name, tensor in change.tensors.items() if name.endswith("_a")]
        strong = next(name for name in ("diff", "hada_w1_a", "lokr_w1", "lokr_w1_a") if name in change.tensors)
        for name, tensor in change.tensors.items():
            yield f"{flat}.{name}", tensor.float() * change.scale if name == strong and change.scale != 1 else tensor
        if ranks:
            rank = next((change.tensors[name].shape[-1] for name in _RANK_OF if name in change.tensors), ranks[0])
            yield f"{flat}.alpha", torch.tensor(float(rank))


_RANK_OF = ("lokr_w2_a", "lokr_w1_a", "hada_w1_a")


def _original(changes: Mapping[str, LowRank], layout: str, names: LayerNames) -> Iterator[tuple[str, Tensor]]:
    import torch

    for layer in _layers(changes, layout, names):
        fused = fuse({module: changes[module] for module in layer.modules if module in changes}, layer)
        if layout == "kohya":
            flat = f"lora_unet_{layer.name.replace('.', '_')}"
            yield f"{flat}.lora_down.weight", fused.down
            yield f"{flat}.lora_up.weight", fused.up
            yield f"{flat}.alpha", torch.tensor(float(fused.rank))
        else:
            prefix = "diffusion_model." if layout == "comfyui" else ""
            yield f"{prefix}{layer.name}.lora_A.weight", fused.down
            yield f"{prefix}{layer.name}.lora_B.weight", fused.up


def _layers(changes: Mapping[str, LowRank], layout: str, names: LayerNames) -> list[Layer]:
    """Return the layers of the file, each once; a family without original names keeps its modules' own."""
    if not names.has_originals:
        return [Layer(name=module, modules=(module,)) for module in changes]
    found = {module: names.original_of(module) for module in changes}
    if missing := [module for module, layer in found.items() if layer is None]:
        raise CheckpointError(
            f"--format {layout}: {len(missing)} modules have no original name: {first_few(missing)}\n"
            "hint: choose --format diffusers"
        )
    return list({layer.name: layer for layer in found.values() if layer is not None}.values())


def fuse(changes: Mapping[str, LowRank], layer: Layer) -> LowRank:
    """Return the change of a fused layer: exact, with the ranks of its modules added unless they share ``down``.

    Rows of modules without a change are zero.
    """
    import torch

    some = next(iter(changes.values()))
    module = next(iter(changes))
    unit = len(some.up) // layer.rows[layer.modules.index(module)]
    dtype = max((change.up.dtype for change in changes.values()), key=lambda dtype: dtype.itemsize)
    shared = all(torch.equal(change.down, some.down) for change in changes.values())
    ranks = [some.rank] if shared else [change.rank for change in changes.values()]
    up = torch.zeros(unit * sum(layer.rows), sum(ranks), dtype=dtype)
    row = column = 0
    for name, share in zip(layer.modules, layer.rows, strict=True):
        if (change := changes.get(name)) is not None:
            up[row : row + len(change.up), column : column + change.rank] = change.up
            column += 0 if shared else change.rank
        row += share * unit
    down = some.down if shared else torch.cat([changes[name].down for name in layer.modules if name in changes])
    fused = _unpadded(LowRank(down=down, up=up))
    if not layer.halves_swapped:
        return fused
    swapped = swapped_halves(fused)
    assert isinstance(swapped, LowRank), "as given"
    return swapped


def _unpadded(change: LowRank) -> LowRank:
    """Return the change without the ranks that are zero on both sides."""
    used = change.down.any(dim=1) | change.up.any(dim=0)
    return LowRank(down=change.down[used], up=change.up[:, used]) if used.any() and not used.all() else change
