"""Says what an adapter file is from its header: kind, rank, alpha, whose names, what trained it. No torch."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from difftrain.errors import ModelError
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.tensor_names import TensorName, is_of_encoder, split_name
from difftrain.model.single_files.file_kinds import kind_of
from difftrain.model.single_files.safetensors_header import FileHeader, StoredTensor, read_header

SETTINGS = "lora_adapter_metadata"
_UNPACKED = {"F32": "<f", "F64": "<d", "F16": "<e"}
_BASE_KEYS = ("base_model", "ss_sd_model_name")
"""Texts of a header that name the model an adapter was trained on."""
_ARCHITECTURE_KEYS = ("modelspec.architecture", "ss_base_model_version")
"""Those that name only its architecture."""
PRECISION = "base_model_precision"
"""Text of a header that names the number format of that model in training."""


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What an adapter file says about itself."""

    kind: str
    """LoRA, DoRA, LoKr, LoHa, a full change; several joined by ``and``."""
    layers: int
    encoder_tensors: int
    ranks: tuple[int, ...]
    """Every rank that occurs, smallest first; empty where there is none."""
    alphas: tuple[float, ...]
    """Every alpha that occurs; empty if the file has none, so that strength 1 applies the weights as they are."""
    layout: str
    """Whose names it has."""
    dtypes: Mapping[str, int]
    """Number of tensors by format."""
    trained_by: str | None
    base: str | None
    """The model it was trained on, if the header names it."""
    architecture: str | None
    """The architecture of that model, as the header calls it."""
    base_precision: str | None
    """Number format of that model's weights in training, if the header names it."""

    def line(self) -> str:
        """Return it as part of a sentence: ``a LoRA of rank 16, alpha 8, on 304 layers, with kohya's names``."""
        rank = f" of rank {_span(self.ranks)}" if self.ranks else ""
        alpha = f", alpha {_span(self.alphas)}," if self.alphas else ""
        encoders = f" and {self.encoder_tensors} tensors of text encoders" if self.encoder_tensors else ""
        trained = f", trained by {self.trained_by}" if self.trained_by else ""
        base = f" on {self.base}" if self.base else f" for {self.architecture}" if self.architecture else ""
        where = f"on {self.layers} layer{'' if self.layers == 1 else 's'}{encoders}, with names of {self.layout}"
        return f"a {self.kind}{rank}{alpha} {where}{trained}{base}"


def describe_adapter(header: FileHeader, names: LayerNames | None = None, own_prefix: str = "") -> AdapterFacts | None:
    """Return what an adapter file is; None if it is no adapter that is known here.

    Args:
        names: Of the family that has its layers, to tell whose names they are.
        own_prefix: The family's prefix, where it has none of the layers.
    """
    prefix = names.prefix if names else own_prefix
    parts: dict[str, TensorName] = {}
    encoders = 0
    for name in header.tensors:
        found = split_name(name, prefix)
        encoders += is_of_encoder(name)
        if found is not None and not is_of_encoder(name):
            parts[name] = found
    if not parts and not (encoders and any(split_name(name) for name in header.tensors)):
        return None
    return AdapterFacts(
        kind=_kind(part.factor for part in parts.values()),
        layers=len({part.layer for part in parts.values()}),
        encoder_tensors=encoders,
        ranks=_ranks(header, parts),
        alphas=_alphas(header, parts, prefix),
        layout=_layout(parts.values(), names, prefix),
        dtypes=dict(Counter(entry.dtype for entry in header.tensors.values())),
        trained_by=_trainer(header.texts),
        base=_first_of(header.texts, _BASE_KEYS),
        architecture=_first_of(header.texts, _ARCHITECTURE_KEYS),
        base_precision=header.texts.get(PRECISION),
    )


def what_is(path: Path, own_prefix: str = "") -> str:
    """Return in a few words what any file is, for messages."""
    try:
        header = read_header(path)
    except ModelError as error:
        return str(error).partition("\n")[0].removeprefix(f"{path} is ")
    facts = describe_adapter(header, own_prefix=own_prefix)
    if facts is not None:
        return facts.line()
    kind = kind_of(header.tensors)
    few = ", ".join(list(header.tensors)[:3]) or "none"
    return kind or f"a file of {len(header.tensors)} tensors: {few}, ..."


def _first_of(texts: Mapping[str, str], keys: Iterable[str]) -> str | None:
    return next((texts[key] for key in keys if texts.get(key)), None)


def _kind(factors: Iterable[str]) -> str:
    found = set(factors)
    kinds = [
        *(["DoRA" if "lengths" in found else "LoRA"] if "down" in found else []),
        *(["LoKr"] if any(factor.startswith("lokr") for factor in found) else []),
        *(["LoHa"] if any(factor.startswith("hada") for factor in found) else []),
        *(["full change"] if "diff" in found else []),
    ]
    return " and ".join(kinds) or "LoRA"


def _ranks(header: FileHeader, parts: Mapping[str, TensorName]) -> tuple[int, ...]:
    found = set()
    for name, part in parts.items():
        shape = header.tensors[name].shape
        if part.factor == "down" and shape:
            found.add(shape[0])
        elif part.factor in ("lokr_w1_a", "lokr_w2_a", "hada_w1_a") and shape:
            found.add(shape[-1])
    return tuple(sorted(found))


def _alphas(header: FileHeader, parts: Mapping[str, TensorName], prefix: str) -> tuple[float, ...]:
    found = {_number(header, header.tensors[name]) for name, part in parts.items() if part.factor == "alpha"}
    if not found:
        try:
            found = {float(json.loads(header.texts[SETTINGS])[f"{prefix}.lora_alpha"])}
        except (LookupError, TypeError, ValueError):
            return ()
    return tuple(sorted(number for number in found if number is not None))


def _number(header: FileHeader, entry: StoredTensor) -> float | None:
    """Return the value of a tensor with one number; None if it is of another kind."""
    with header.path.open("rb") as file:
        file.seek(entry.start)
        stored = file.read(min(entry.end - entry.start, 8))
    if entry.dtype == "BF16" and len(stored) == 2:
        return float(struct.unpack("<f", b"\0\0" + stored)[0])
    pattern = _UNPACKED.get(entry.dtype)
    return float(struct.unpack(pattern, stored)[0]) if pattern and len(stored) == struct.calcsize(pattern) else None


def _layout(parts: Iterable[TensorName], names: LayerNames | None, own_prefix: str) -> str:
    """Return whose names a file has, by the most usual prefix of its tensors."""
    counted = Counter(part.prefix for part in parts)
    if not counted:
        return "text encoders alone"
    prefix = counted.most_common(1)[0][0]
    layer = next(part.layer for part in parts if part.prefix == prefix)
    found = names.find(layer) if names else None
    original = found.original if found else None
    spelled = {True: "original layers", False: "the modules of diffusers", None: "layers"}[original]
    if prefix == "lora_unet_":
        return f"kohya (sd-scripts), {spelled}"
    if prefix == "lycoris_":
        return f"LyCORIS, as SimpleTuner and difftrain write them, {spelled}"
    if prefix == f"lora_{own_prefix}_":
        return f"ai-toolkit's old names, {spelled}"
    if prefix.endswith("diffusion_model."):
        return f"ComfyUI, {spelled}" if original else f"ComfyUI and ai-toolkit, {spelled}"
    if prefix == "base_model.model.":
        return f"peft, {spelled}"
    if prefix == f"{own_prefix}." and own_prefix:
        return "diffusers, as ai-toolkit, SimpleTuner and difftrain write them too"
    return "BFL" if original else f"no known program, {spelled}"


def _trainer(texts: Mapping[str, str]) -> str | None:
    """Return the program that the header names; None if it names none."""
    try:
        software = json.loads(texts.get("software", "null"))
        if isinstance(software, dict) and software.get("name"):
            return " ".join(str(software[key]) for key in ("name", "version") if software.get(key))
    except ValueError:
        return texts["software"]
    if texts.get("trained_with"):
        return texts["trained_with"]
    module = texts.get("ss_network_module", "")
    if module.startswith("lycoris"):
        return "sd-scripts with LyCORIS"
    if module.startswith("networks."):
        return "kohya's sd-scripts"
    if any(key.startswith("ot_") for key in texts):
        return "OneTrainer"
    return None


def _span(numbers: tuple[float, ...] | tuple[int, ...]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"
