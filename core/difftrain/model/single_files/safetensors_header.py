"""Reads what a safetensors file holds from its header: names, formats and shapes of tensors. Light: no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from difftrain.errors import ModelError, first_few

LARGEST_HEADER = 100 << 20
"""The limit of the safetensors format."""
SUFFIXES = (".safetensors", ".sft")
"""Of safetensors files."""
_PICKLE = "a file of torch.save (.ckpt, .pt), which may run code when it is opened"
_OTHER_FORMATS = {
    b"GGUF": "a GGUF file, whose weights are quantised for inference",
    b"PK\x03\x04": _PICKLE,
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), _PICKLE),
    b"version https://git-lfs": "the pointer of a file that git-lfs has not downloaded",
    b"<": "a web page, not the file itself",
    b"Entry not found": "an error message of the hub, not the file itself",
    b"Invalid username": "an error message of the hub, not the file itself",
    **dict.fromkeys((b"{", b"["), "a JSON text, such as a config or a workflow"),
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"RIFF"), "an image"),
    **dict.fromkeys((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!"), "a compressed archive"),
    b"\x89HDF": "an HDF5 file",
}
"""What other files start with, and what they are."""
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
"""Of one number; of other formats nothing is assumed."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor as the header describes it."""

    dtype: str
    """As the format names it: BF16, F8_E4M3, U8."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    end: int
    """First byte after it."""


@dataclass(frozen=True, kw_only=True)
class FileHeader:
    """The tensors of a safetensors file by name, and the texts that were saved with them."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    texts: Mapping[str, str]


def read_header(path: Path) -> FileHeader:
    """Return what a safetensors file holds, after checking that it is complete.

    Raises:
        ModelError: If it is another kind of file, cut short or damaged, or cannot be read.
    """
    try:
        raw = raw_header(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}\nhint: make it readable, or name a copy") from error
    content = json.loads(raw)
    texts = content.pop("__metadata__", None) or {}
    first = 8 + len(raw)
    try:
        tensors = {
            str(name): StoredTensor(
                dtype=str(entry["dtype"]),
                shape=tuple(int(edge) for edge in entry["shape"]),
                start=first + int(entry["data_offsets"][0]),
                end=first + int(entry["data_offsets"][1]),
            )
            for name, entry in content.items()
        }
    except (ValueError, TypeError, LookupError) as error:
        raise ModelError(f"{path} is cut short or damaged\nhint: download or save it again") from error
    wrong = [name for name, tensor in tensors.items() if not _has_its_size(tensor)]
    if wrong:
        raise ModelError(
            f"{path} is damaged: {len(wrong)} of its {len(tensors)} tensors have other sizes than its header says: "
            f"{first_few(wrong)}\nhint: download or save it again"
        )
    return FileHeader(path=path, tensors=tensors, texts={str(key): str(text) for key, text in dict(texts).items()})


def _has_its_size(tensor: StoredTensor) -> bool:
    one = _BYTES.get(tensor.dtype)
    size = tensor.end - tensor.start
    return min(tensor.shape, default=0) >= 0 and (size >= 0 if one is None else size == one * prod(tensor.shape))


def raw_header(path: Path) -> bytes:
    """Return the header's bytes, a JSON object, after checking that the file is as long as it says.

    Raises:
        ModelError: If it is not safetensors, cut short or damaged.
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    if not size:
        raise ModelError(f"{path} is empty\nhint: download or save it again")
    with path.open("rb") as file:
        start = file.read(32)
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else size
        if length > min(size - 8, LARGEST_HEADER):
            other = next((what for magic, what in _OTHER_FORMATS.items() if start.startswith(magic)), None)
            if other is None and path.suffix.lower() in SUFFIXES:
                raise ModelError(f"{path} is not a complete safetensors file\nhint: download or save it again")
            raise ModelError(f"{path} is {other or 'not a safetensors file'}\nhint: name a .safetensors file")
        file.seek(8)
        header = file.read(length)
    if 8 + length + _announced(header) != size:
        raise ModelError(f"{path} is cut short or damaged\nhint: download or save it again")
    return header


def _announced(header: bytes) -> int:
    """Return the bytes of tensors that a safetensors header announces; -1 if it is not a header."""
    try:
        entries = json.loads(header)
        return max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return -1
