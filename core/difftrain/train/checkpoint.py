"""Checkpoints: complete or absent, rotated, resumed exactly.

``checkpoint-N`` holds the adapter as other programs load it and, under ``resume/``, what is needed to go on as
if the run had never stopped. No generator state is among it: every random draw of a run comes from a seed of its
place (see :mod:`difftrain.data.seeding`), so the step and the position are enough.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from difftrain.data.loader import Position
from difftrain.errors import CheckpointError
from difftrain.train.step import Trainee

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """What a checkpoint knows of its run beside tensors."""

    step: int
    position: Position
    config: dict[str, Any]
    plugins: dict[str, str]
    """Version of each plugin by name."""


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest step first."""
    if not output_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in output_dir.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The checkpoint to resume: a path or a name in ``output_dir``; ``latest`` is the highest step if there is any;
    ``none`` gives None.

    Raises:
        CheckpointError: If a path is wanted that is no checkpoint.
    """
    if wanted == "none":
        return None
    existing = list_checkpoints(output_dir)
    if wanted == "latest":
        return existing[-1] if existing else None
    for candidate in (Path(wanted), output_dir / wanted):
        if (candidate / "resume" / "state.json").is_file():
            return candidate
    there = ", ".join(path.name for path in existing) or "none"
    raise CheckpointError(f"resume_from_checkpoint: {wanted} is no checkpoint; in {output_dir} there are: {there}")


def save_checkpoint(run: Trainee, output_dir: Path, *, keep: int | None) -> Path:
    """Write ``checkpoint-N`` beside its final name, flush, rename; then remove the oldest beyond ``keep``."""
    final = output_dir / f"checkpoint-{run.step}"
    temporary = output_dir / f".checkpoint-{run.step}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "resume").mkdir(parents=True)
    export_adapter(run, temporary / ADAPTER_FILE)
    raw = {name: tensor.cpu().contiguous() for name, tensor in run.plan.adapter.state(run.bare_denoiser).items()}
    save_file(raw, temporary / "resume" / "adapter.safetensors")
    torch.save(run.optimizer.state_dict(), temporary / "resume" / "optimizer.pt")
    state = ResumeState(
        step=run.step,
        position=run.position,
        config=run.plan.config.model_dump(mode="json"),
        plugins=run.plan.plugins.versions(),
    )
    (temporary / "resume" / "state.json").write_text(json.dumps(asdict(state), indent=1))
    _flush(temporary)
    _remove(final)
    temporary.rename(final)
    _flush_folder(output_dir)
    if keep is not None:
        for old in list_checkpoints(output_dir)[:-keep]:
            _remove(old)
    return final


def export_adapter(run: Trainee, path: Path) -> None:
    """Write the adapter as other programs load it, complete or not at all."""
    tensors, header = run.plan.adapter.export(run.bare_denoiser, run.plan.family.lora_prefix)
    temporary = path.with_name(f".{path.name}.partial")
    save_file(tensors, temporary, metadata=header)
    temporary.rename(path)


def read_state(checkpoint: Path) -> ResumeState:
    """What the checkpoint says of its run.

    Raises:
        CheckpointError: If it cannot be read.
    """
    path = checkpoint / "resume" / "state.json"
    try:
        state = json.loads(path.read_text())
        return ResumeState(
            step=state["step"],
            position=Position(**state["position"]),
            config=state["config"],
            plugins=state["plugins"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); resume an older checkpoint by its path") from error


def load_checkpoint(run: Trainee, checkpoint: Path) -> ResumeState:
    """Put adapter, optimizer, step and position back into ``run``.

    Raises:
        CheckpointError: If a file is damaged or does not fit the run's adapter.
    """
    state = read_state(checkpoint)
    try:
        run.plan.adapter.load_state(run.bare_denoiser, load_file(checkpoint / "resume" / "adapter.safetensors"))
        saved = torch.load(checkpoint / "resume" / "optimizer.pt", map_location="cpu", weights_only=True)
        run.optimizer.load_state_dict(saved)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} cannot be resumed ({error})") from error
    run.step, run.position = state.step, state.position
    return state


def set_aside(output_dir: Path) -> Path | None:
    """Move an earlier run's results into ``previous-K``, so that starting anew loses nothing."""
    old = (
        [path for path in output_dir.iterdir() if not path.name.startswith("previous-")] if output_dir.is_dir() else []
    )
    if not list_checkpoints(output_dir):
        return None
    number = 1
    while (output_dir / f"previous-{number}").exists():
        number += 1
    folder = output_dir / f"previous-{number}"
    folder.mkdir()
    for path in old:
        path.rename(folder / path.name)
    return folder


def _remove(folder: Path) -> None:
    """Take a checkpoint away so that a kill meanwhile leaves no half of it under its name."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.removing")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
