"""Tensors on disk under a content key: complete or absent, checked when read, made again when corrupt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.errors import DataError
from difftrain.machine.retries import refusal, with_retries

if TYPE_CHECKING:
    from torch import Tensor

_File = tuple[int, int, int]

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
        """Whether a complete entry is there, told from its size and header; one that they prove corrupt is removed.

        Raises:
            DataError: If the file cannot be looked at; it is kept.
        """
        path = self.path(key)
        try:
            looked_at = with_retries(lambda: _file_state(path))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DataError(refusal(f"cache entry {path} cannot be read", error)) from error
        if not looked_at.whole:
            self._remove(key, looked_at.file)
        return looked_at.whole

    def read(self, key: str, *, needed: Collection[str] = ()) -> dict[str, Tensor]:
        """The tensors of an entry.

        Args:
            needed: Names that a complete entry has.

        Raises:
            AbsentEntry: If there is none, or it was proved corrupt by its content and removed.
            DataError: If the file cannot be read, which proves nothing; it is kept.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(key)
        try:
            file, data = with_retries(lambda: _content(path))
        except FileNotFoundError as error:
            raise AbsentEntry(f"cache entry {path} is not there") from error
        except OSError as error:
            raise DataError(refusal(f"cache entry {path} cannot be read", error)) from error
        try:
            tensors: dict[str, Tensor] = load(data)
        except (SafetensorError, ValueError, KeyError) as error:  # a number format that torch lacks is a KeyError
            self._remove(key, file)
            raise CorruptEntry(f"cache entry {path} is damaged ({error})") from error
        broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
        if broken or not tensors or not tensors.keys() >= set(needed):
            self._remove(key, file)
            what = f"{broken[0]} has values that are not finite" if broken else f"has only {sorted(tensors)}"
            raise CorruptEntry(f"cache entry {path}: {what}")
        # copies, since tensors in the file's buffer start at any 8 bytes and some CPU kernels crash on that
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry; whenever the process is killed, the entry is complete or absent.

        Raises:
            DataError: If a value is not finite (an image or an encoder is broken), or the file cannot be written.
        """
        from safetensors.torch import save

        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not _is_finite(tensor):
                raise DataError(f"the encoder gave values that are not finite ({name}); try vae_dtype fp32")
        write_atomically(self.path(key), save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def _remove(self, key: str, file: _File) -> None:
        """Take a corrupt file away; one that another run has put in its place meanwhile stays."""
        path = self.path(key)
        try:
            if _identity(path.stat()) == file:
                path.unlink()
                self.removed.append(key)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(refusal(f"corrupt cache entry {path} cannot be removed", error)) from error


class AbsentEntry(DataError):
    """A cache entry that is not there, so that it must be made."""


class CorruptEntry(AbsentEntry):
    """A cache entry that was proved corrupt by its content, and was removed."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name, flush to disk, rename.

    Raises:
        DataError: If the file or its folder cannot be written, naming it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with with_retries(lambda: temporary.open("wb")) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is what must be told
                temporary.unlink()
            raise
    except OSError as error:
        raise DataError(refusal(f"{path} cannot be written", error)) from error


@dataclass(frozen=True)
class _FileState:
    file: _File
    whole: bool


def _identity(status: os.stat_result) -> _File:
    """Tells a file from one that was put in its place."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _content(path: Path) -> tuple[_File, bytes]:
    with path.open("rb") as file:
        return _identity(os.fstat(file.fileno())), file.read()


def _file_state(path: Path) -> _FileState:
    """Compare a safetensors file's size with what its header announces, reading only the header."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else status.st_size
        header = file.read(length) if 8 + length <= status.st_size else b""
    return _FileState(_identity(status), whole=_announced_size(header) == status.st_size - 8 - length)


def _announced_size(header: bytes) -> int | None:
    """Bytes of the tensors that a safetensors header lists; None when it is none, or lists none."""
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return max(ends, default=None)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
