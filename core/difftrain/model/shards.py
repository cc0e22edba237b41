"""Weights from safetensors files, one tensor at a time. Light: torch is imported when the first file is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftrain.errors import ModelError, first_few

if TYPE_CHECKING:
    from torch import Tensor

WHOLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""Usual names of a single file with all weights; other files beside it are variants of the same weights."""
AGAIN = "hint: download or save the model again"


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a folder of safetensors files with its name, shard by shard, in the order of the files.

    Reads the shards in the folder's index, else the file with a usual name, else all files. A tensor is on the
    CPU and maps its part of the file: copy what you keep. Its memory is freed with it, so the host
    never holds more than the tensors in use.

    Raises:
        ModelError: If files are missing, or one is damaged.
    """
    for path in weight_files(folder):
        yield from _tensors(path)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights.

    Raises:
        ModelError: If there are none, the index is not valid, or files that it names are missing.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        files = [folder / name for name in _shards(index)]
        if missing := [file.name for file in files if not file.is_file()]:
            raise ModelError(f"{folder}: {len(missing)} of {len(files)} weight files are missing: {first_few(missing)}")
        return files
    usual = [folder / name for name in WHOLE_FILES if (folder / name).is_file()]
    files = usual[:1] or sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} has no weight files (*.safetensors)\n{AGAIN}")
    return files


def _shards(index: Path) -> list[str]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in named})
    except OSError as error:
        raise ModelError(f"{index} cannot be read: {error.strerror}\n{AGAIN}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is not an index of weight files\n{AGAIN}") from error


def read_tensor(path: Path, name: str) -> Tensor:
    """Return one tensor of a safetensors file; it is on the CPU and maps its part of the file.

    Raises:
        ModelError: If the file is damaged or cannot be read.
    """
    # opened for each tensor: pages of a mapped file count as this process's memory
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with _opened(path) as file:
        names = file.offset_keys()
    for name in names:
        tensor = read_tensor(path, name)
        yield name, tensor
        del tensor


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{path} is not a complete safetensors file ({error})\n{AGAIN}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}\n{AGAIN}") from error
