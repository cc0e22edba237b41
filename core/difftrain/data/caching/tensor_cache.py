"""Tensors on disk by content key: complete or absent, checked when read, made again when corrupt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.errors import DataError
from difftrain.machine.retries import refusal, with_retries

if TYPE_CHECKING:
    from torch import Tensor

_File = tuple[int, int, int]

CACHE_VERSION = 1
"""Part of every key; raise it when entries of older versions must not be read."""
_VERSION = f"v{CACHE_VERSION}"


def cache_key(*parts: str) -> str:
    """Return a hex digest of everything an entry depends on; lengths keep the parts apart."""
    text = _VERSION + "".join([f"|{len(part)}|{part}" for part in parts])
    if not text.isascii():  # lengths are those of bytes
        text = _VERSION + "".join([f"|{len(part.encode())}|{part}" for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@dataclass
class TensorCache:
    """A folder of safetensors files, one per entry. Several runs may share it."""

    folder: Path
    removed: list[str] = field(default_factory=list)
    """Keys of corrupt entries that were removed; reported once."""

    @cached_property
    def name(self) -> str:
        """The folder as text, which compares ten times as fast as a path."""
        return str(self.folder)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def holds(self, key: str, *, needed: Collection[str] = ()) -> bool:
        """Return whether a complete entry exists, judged by size and header; remove one that they prove corrupt.

        Args:
            needed: Names that a complete entry has; one without them is kept, since others may need no more.

        Raises:
            DataError: If the file cannot be examined; it is kept.
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
        return looked_at.whole and looked_at.names >= set(needed)

    def read(self, key: str, *, needed: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the tensors of an entry.

        Args:
            needed: Names that a complete entry has.

        Raises:
            AbsentEntry: If there is none, or its content proved corrupt and it was removed.
            DataError: If the file cannot be read, which proves nothing; it is kept.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(key)
        try:
            file, data = with_retries(lambda: _content(path))
        except FileNotFoundError as error:
            raise AbsentEntry(f"cache entry {path} does not exist") from error
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
        # copy, because tensors in the file's buffer are aligned to 8 bytes only and some CPU kernels crash on that
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry, so that it is complete or absent whenever the process is killed.

        Raises:
            DataError: If a value is not finite (an image or an encoder is broken), or the file cannot be written.
        """
        from safetensors.torch import save

        check_finite(tensors)
        write_atomically(self.path(key), save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def discard(self, key: str) -> bool:
        """Remove an entry that is no longer needed; False if there is none.

        Raises:
            DataError: If it cannot be removed.
        """
        path = self.path(key)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DataError(refusal(f"cache entry {path} cannot be removed", error)) from error
        return True

    def _remove(self, key: str, file: _File) -> None:
        """Remove a corrupt file, unless another run has replaced it meanwhile."""
        path = self.path(key)
        try:
            if _identity(path.stat()) == file:
                path.unlink()
                self.removed.append(key)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(refusal(f"corrupt cache entry {path} cannot be removed", error)) from error


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what an encoder should not return.

    Raises:
        DataError: If a value is not finite: an image or the encoder is broken.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise DataError(f"the encoder returned values that are not finite ({name}); try vae_dtype fp32")


class AbsentEntry(DataError):
    """A cache entry does not exist and must be made."""


class CorruptEntry(AbsentEntry):
    """A cache entry's content proved corrupt, and it was removed."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name, flush to disk, rename.

    Raises:
        DataError: If the file or its folder cannot be written; names it.
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
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink()
            raise
    except OSError as error:
        raise DataError(refusal(f"{path} cannot be written", error)) from error


@dataclass(frozen=True)
class _FileState:
    file: _File
    whole: bool
    names: frozenset[str]
    """Of the tensors that the header lists."""


def _identity(status: os.stat_result) -> _File:
    """Return what distinguishes a file from one that replaced it."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _content(path: Path) -> tuple[_File, bytes]:
    with path.open("rb") as file:
        return _identity(os.fstat(file.fileno())), file.read()


def _file_state(path: Path) -> _FileState:
    """Compare a safetensors file's size with the size its header announces, reading only the header."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else status.st_size
        header = file.read(length) if 8 + length <= status.st_size else b""
    ends = _announced_ends(header)
    whole = max(ends.values(), default=None) == status.st_size - 8 - length
    return _FileState(_identity(status), whole=whole, names=frozenset(ends))


def _announced_ends(header: bytes) -> dict[str, int]:
    """Return where the tensors that a safetensors header lists end, by name; empty if it is not valid."""
    try:
        ends = {name: one["data_offsets"][1] for name, one in json.loads(header).items() if name != "__metadata__"}
        return ends if all(isinstance(end, int) for end in ends.values()) else {}
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return {}


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
