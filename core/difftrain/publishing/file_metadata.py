"""Writes the facts of a run into the headers of its weight files, where other programs show them.

Source of the names ``modelspec.*``: the SAI model spec 1.0.1, https://github.com/Stability-AI/ModelSpec.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from difftrain.publishing.run_facts import RunFacts, today

PRECISION_KEY = "base_model_precision"
"""Entry of a header that names the number format of the frozen weights in training."""
FILE_NOTE_KEY = "training.file_note"
"""Entry of a header that says what is unusual about the file's matrices."""
_ALIGNED = 8
"""Bytes that the tensors' start is a multiple of, as in files of the safetensors library."""


def metadata_of(facts: RunFacts) -> dict[str, str]:
    """Return the entries of a header; every value is a text."""
    rank, alpha = facts.settings.get("lora_rank"), facts.settings.get("lora_alpha")
    entries = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": facts.title,
        "modelspec.architecture": f"{facts.architecture}{'' if facts.whole_model else f'/{facts.kind}'}",
        "modelspec.implementation": "diffusers",
        "modelspec.date": today(),
        "modelspec.resolution": facts.resolution,
        "modelspec.trigger_phrase": ", ".join(facts.trigger_words),
        "modelspec.usage_hint": facts.precision_note,
        "base_model": facts.base_model,
        PRECISION_KEY: facts.precision,
        "trained_with": "difftrain",
        "training.steps": facts.steps,
        "training.batch_size": facts.batch_size,
        "training.datasets": len(facts.samples) or None,
        "training.samples": sum(facts.samples) or None,
        "training.rank": rank,
        # of equal adapters the text must be equal, whether the config says 16, 16.0 or nothing
        "training.alpha": f"{float(alpha or rank):g}" if rank else None,
        FILE_NOTE_KEY: facts.file_note,
        **{
            f"training.{key}": facts.settings.get(key)
            for key in ("optimizer", "learning_rate", "lr_scheduler", "mixed_precision")
        },
    }
    return {key: str(value) for key, value in entries.items() if value not in (None, "")}


def add_metadata(folder: Path, facts: RunFacts) -> None:
    """Add the facts to every safetensors file below a folder. Tensors, and entries that are there, stay as they are.

    Raises:
        OSError: If a file cannot be written.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        add_to_header(path, metadata_of(facts))


def tensor_names(path: Path) -> list[str]:
    """Return the names in a safetensors file; reads its header alone.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return [name for name in json.loads(file.read(length)) if name != "__metadata__"]


def add_to_header(path: Path, entries: Mapping[str, str]) -> None:
    """Write a safetensors file again with more entries in its header, and the hash of its tensors among them.

    Entries are sorted, which the library does not do: equal tensors and entries give equal files.

    Raises:
        OSError: If it cannot be written; the file is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with path.open("rb") as source, temporary.open("wb") as copy:
            (length,) = struct.unpack("<Q", source.read(8))
            header = json.loads(source.read(length))
            hashed = {"modelspec.hash_sha256": f"0x{_hash_of_rest(source)}"}
            own = header.get("__metadata__", {})
            header["__metadata__"] = dict(sorted({**entries, **hashed, **own}.items()))
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
            text += b" " * (-len(text) % _ALIGNED)
            copy.write(struct.pack("<Q", len(text)) + text)
            source.seek(8 + length)
            shutil.copyfileobj(source, copy, 1 << 20)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _hash_of_rest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()
