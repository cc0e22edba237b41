"""One safetensors file with all weights of a denoiser, also in 8 bits, read tensor by tensor.

The names are checked before torch is imported. Names and shapes are the file's own: the family maps them.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.errors import ModelError, first_few
from difftrain.model.shards import read_tensor
from difftrain.model.single_files.file_kinds import kind_of, quantised_as
from difftrain.model.single_files.safetensors_header import FileHeader, StoredTensor, read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Formats of weights that are numbers by themselves, or with one factor per tensor."""
SCALES = (".scale_weight", ".weight_scale")
"""Ends of the names of such factors, beside ``.weight``."""
NOTE = ".comfy_quant"
"""End of the names of notes about a layer's format, which an inference program writes."""
NOTES = "_quantization_metadata"
"""Text of the header with the same notes about all layers."""
PLAIN = ("float8_e4m3fn", "float8_e5m2")
"""Formats in such notes that the numbers and their factor alone describe."""
UNUSED = (".scale_input", ".input_scale", NOTE)
"""Ends of the names of tensors that hold no weights: factors of a layer's inputs, and notes."""
MARKERS = ("scaled_fp8",)
"""Empty tensors that only say that the weights are scaled."""
ROWS = 1024
"""Rows of a weight that are scaled at once, to need little memory beside the result."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The weights of one file by name, without the prefix that all have in it."""

    path: Path
    weights: Mapping[str, StoredTensor]
    prefix: str
    scales: Mapping[str, str]
    """For weights with a factor: the factor's name in the file."""
    texts: Mapping[str, str]
    """What the header says beside the tensors."""

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight with its name, in the order of the file.

        A tensor maps its part of the file, as with :func:`read_weights`. Weights with a factor are multiplied by it in
        float32 and come in bfloat16.

        Raises:
            ModelError: If the file cannot be read.
        """
        for name in sorted(self.weights, key=lambda name: self.weights[name].start):
            tensor = read_tensor(self.path, self.prefix + name)
            if name in self.scales:
                tensor = _scaled(tensor, read_tensor(self.path, self.scales[name]))
            yield name, tensor
            del tensor


def open_weight_file(path: Path, prefixes: Sequence[str] = ()) -> WeightFile:
    """Return the weights that a file has, without reading them.

    Args:
        path: A safetensors file.
        prefixes: Prefixes that names may have. If names with one exist, all others are left out: other parts
            of a checkpoint with everything in one file.

    Raises:
        ModelError: If it is another file or damaged, an adapter or another part of a model, or its weights are in a
            format that cannot be read. Says what it is.
    """
    header = read_header(path)
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in header.tensors)), "")
    own = {name.removeprefix(prefix): entry for name, entry in header.tensors.items() if name.startswith(prefix)}
    if kind := kind_of(own):
        raise ModelError(f"{path} is {kind}, not the weights of a denoiser\nhint: name the file of the model itself")
    _check_notes(header, prefix)
    if layout := quantised_as(own):
        raise _unreadable(path, layout, (name for name in own if quantised_as([name])))
    scales = {name: weight for name in own if (weight := _scaled_by(name)) is not None and weight in own}
    weights = {
        name: entry for name, entry in own.items() if name not in (*scales, *MARKERS) and not name.endswith(UNUSED)
    }
    _check_formats(path, own, weights, scales)
    return WeightFile(
        path=path,
        weights=weights,
        prefix=prefix,
        scales={weight: prefix + name for name, weight in scales.items()},
        texts=header.texts,
    )


def _scaled_by(name: str) -> str | None:
    """Return the weight that a tensor of this name is the factor of; None for other tensors."""
    end = next((end for end in SCALES if name.endswith(end)), None)
    return name.removesuffix(end) + ".weight" if end else None


def _check_formats(
    path: Path, own: Mapping[str, StoredTensor], weights: Mapping[str, StoredTensor], scales: Mapping[str, str]
) -> None:
    odd = [f"{name} ({entry.dtype})" for name, entry in weights.items() if entry.dtype not in WEIGHTS]
    if odd:
        raise _unreadable(path, "a format that is not known here", odd)
    wide = [f"{name} {list(own[name].shape)}" for name in scales if math.prod(own[name].shape) != 1]
    wide += [f"{name} ({own[name].dtype})" for name in scales if own[name].dtype not in WEIGHTS]
    if wide:
        raise _unreadable(path, "8 bits with more than one factor per tensor", wide)


def _check_notes(header: FileHeader, prefix: str) -> None:
    """Check what the file says about the formats of its layers; other than plain 8-bit floats are refused by name."""
    formats = _formats_in(header.texts.get(NOTES, "{}"))
    with header.path.open("rb") as file:
        for name, entry in header.tensors.items():
            if name.startswith(prefix) and name.endswith(NOTE):
                file.seek(entry.start)
                formats[name] = _format_in(file.read(entry.end - entry.start))
    odd = {name: said for name, said in formats.items() if said not in PLAIN}
    if odd:
        raise _unreadable(header.path, " and ".join(sorted(set(odd.values()))), odd)


def _formats_in(notes: str) -> dict[str, str]:
    """Return the format of each layer by name that notes in the header give."""
    try:
        layers = json.loads(notes).get("layers", {})
        return {name: _format_in(json.dumps(said)) for name, said in layers.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {NOTES: "unknown"}


def _format_in(note: bytes | str) -> str:
    """Return the format that a note about a layer, a JSON object, names."""
    try:
        said = json.loads(note)
        return str(said["format"]) + (" with rotated inputs" if said.get("convrot") else "")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "unknown"


def _unreadable(path: Path, layout: str, names: Iterator[str] | Sequence[str] | Mapping[str, str]) -> ModelError:
    return ModelError(
        f"{path}: its weights are quantised as {layout}: {first_few(names)}\n"
        "hint: name a file in bf16, fp16 or fp8 (with at most one scale per tensor); base_model_precision quantises it"
    )


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Return ``weight * scale`` in bfloat16; the product is made in float32."""
    import torch

    factor = scale.to(torch.float32).reshape(())
    result = _room(weight.shape, torch.bfloat16)
    products = _room((min(ROWS, len(weight)), *weight.shape[1:]), torch.float32)
    for first in range(0, len(weight), ROWS):
        rows = weight[first : first + ROWS]
        product = products[: len(rows)].copy_(rows).mul_(factor)
        result[first : first + ROWS].copy_(product)
    return result


def _room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor whose memory the system gets back as soon as it is freed.

    malloc keeps blocks of up to 32 MiB, and takes aligned ones anew each time: over a whole model, gigabytes.
    """
    import torch

    count = math.prod(shape)
    return torch.frombuffer(mmap.mmap(-1, max(1, count * dtype.itemsize)), dtype=dtype, count=count).reshape(*shape)
