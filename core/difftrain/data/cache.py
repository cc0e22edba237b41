"""Tensors on disk under a content key: complete or absent, checked when read, made again when corrupt."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VERSION = 1
"""Part of every key; raised when entries of an older version must not be read."""


def cache_key(*parts: str) -> str:
    """Hex digest of what an entry depends on; parts are told apart by their lengths."""
    digest = hashlib.sha256(f"v{CACHE_VERSION}".encode())
    for part in parts:
        data = part.encode()
        digest.update(f"|{len(data)}|".encode())
        digest.update(data)
    return digest.hexdigest()[:40]


@dataclass
class TensorCache:
    """A folder of safetensors files, one an entry. Several runs may share it."""

    folder: Path
    removed: list[str] = field(default_factory=list)
    """Keys of corrupt entries that were removed; the reporter says them once."""

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def holds(self, key: str) -> bool:
        """Whether a complete entry is there, told from its size alone; a wrong size removes it.

        Raises:
            DataError: If the file cannot be looked at.
        """
        path = self.path(key)
        try:
            complete = _has_whole_length(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DataError(f"cache entry {path} cannot be read ({error.strerror})") from error
        if not complete:
            self._remove(key)
        return complete

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry.

        Raises:
            CorruptEntry: If the entry is missing, cut short, or has NaN or infinite values; it is removed.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors: dict[str, Tensor] = load(self.path(key).read_bytes())
        except (OSError, SafetensorError, ValueError) as error:
            self._remove(key)
            raise CorruptEntry(f"cache entry {self.path(key)} cannot be read ({error})") from error
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                self._remove(key)
                raise CorruptEntry(f"cache entry {self.path(key)}: {name} has values that are not finite")
        # copies, since tensors in the file's buffer start at any 8 bytes and some CPU kernels crash on that
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry; whenever the process is killed, the entry is complete or absent.

        Raises:
            DataError: If a value is not finite (a picture or an encoder is broken), or the file cannot be written.
        """
        from safetensors.torch import save

        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise DataError(f"the encoder gave values that are not finite ({name}); try vae_dtype fp32")
        write_atomically(self.path(key), save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def _remove(self, key: str) -> None:
        self.removed.append(key)
        path = self.path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"corrupt cache entry {path} cannot be removed ({error.strerror})") from error


class CorruptEntry(DataError):
    """A cache entry that cannot be used and was removed."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name, flush to disk, rename.

    Raises:
        DataError: If the file or its folder cannot be written, naming it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from error


def _has_whole_length(path: Path) -> bool:
    """Compare a safetensors file's size with what its header announces, reading only the header."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return False
        (header_length,) = struct.unpack("<Q", start)
        size = path.stat().st_size
        if header_length > size:
            return False
        try:
            header = json.loads(file.read(header_length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(size == 8 + header_length + max(ends, default=0))
