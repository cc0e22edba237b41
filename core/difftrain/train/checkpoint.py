"""Checkpoints: complete or absent, rotated, resumed exactly.

``checkpoint-N`` holds the adapter as other programs load it and, under ``resume/``, what is needed to go on as
if the run had never stopped. No generator state is among it: every random draw of a run comes from a seed of its
place (see :mod:`difftrain.data.seeding`), so the step and the position are enough.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from difftrain.data.loader import Position
from difftrain.errors import CheckpointError
from difftrain.train.optimizer_state import DamagedState, load_optimizer, save_optimizer
from difftrain.train.output_dir import ADAPTER_FILE, list_checkpoints
from difftrain.train.step import Trainee


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """What a checkpoint knows of its run beside tensors."""

    step: int
    position: Position
    processes: int
    config: dict[str, Any]
    plugins: dict[str, str]
    """Version of each plugin by name."""


def save_checkpoint(run: Trainee, output_dir: Path, *, keep: int | None) -> Path:
    """Write ``checkpoint-N`` beside its final name, flush, rename; then remove the oldest beyond ``keep``.

    Only the first process writes: the others have the same weights and optimizer.
    """
    final = output_dir / f"checkpoint-{run.step}"
    temporary = output_dir / f".checkpoint-{run.step}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "resume").mkdir(parents=True)
    export_adapter(run, temporary / ADAPTER_FILE)
    raw = {name: tensor.cpu().contiguous() for name, tensor in run.plan.adapter.state(run.bare_denoiser).items()}
    save_file(raw, temporary / "resume" / "adapter.safetensors")
    save_optimizer(run.optimizer, temporary / "resume")
    state = ResumeState(
        step=run.step,
        position=run.position,
        processes=run.accelerator.num_processes,
        config=run.plan.config.model_dump(mode="json"),
        plugins=run.plan.plugins.versions(),
    )
    (temporary / "resume" / "state.json").write_text(json.dumps(asdict(state), indent=1))
    _flush(temporary)
    _remove(final)
    temporary.rename(final)
    _flush_one(output_dir)
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
            processes=state["processes"],
            config=state["config"],
            plugins=state["plugins"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def changes_since(state: ResumeState, run: Trainee) -> list[str]:
    """What is different now: ``train_batch_size 2 -> 3``. Places where files lie do not count."""
    now = run.plan.config.model_dump(mode="json")
    places = ("output_dir", "resume_from_checkpoint", "plugins")
    pairs = {key: (state.config.get(key), value) for key, value in now.items() if key not in places}
    versions = run.plan.plugins.versions()
    pairs |= {f"plugin {name}": (state.plugins.get(name), versions.get(name)) for name in {*state.plugins, *versions}}
    pairs["processes"] = state.processes, run.accelerator.num_processes
    return [f"{name} {_told(before)} -> {_told(after)}" for name, (before, after) in pairs.items() if before != after]


def _told(value: object) -> str:
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)


def load_checkpoint(run: Trainee, checkpoint: Path, state: ResumeState) -> None:
    """Put adapter, optimizer, step and position back into ``run``.

    Raises:
        CheckpointError: If a file is damaged or does not fit the run's adapter or optimizer.
    """
    try:
        adapter = load_file(checkpoint / "resume" / "adapter.safetensors")
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint, error) from error
    run.plan.adapter.load_state(run.bare_denoiser, adapter)
    try:
        load_optimizer(run.optimizer, checkpoint / "resume")
    except DamagedState as error:
        raise _damaged(checkpoint, error) from error
    run.step, run.position = state.step, state.position


def _damaged(checkpoint: Path, error: Exception) -> CheckpointError:
    others = [str(path) for path in reversed(list_checkpoints(checkpoint.parent)) if path.name != checkpoint.name]
    hint = (
        f"resume another one: --resume_from_checkpoint {others[0]}"
        if others
        else "start anew: --resume_from_checkpoint none"
    )
    return CheckpointError(f"{checkpoint} is damaged: {error}\nhint: {hint}")


def _remove(folder: Path) -> None:
    """Take a checkpoint away so that a kill meanwhile leaves no half of it under its name."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.removing")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Force a folder's files and names to the disk."""
    for path in (*folder.rglob("*"), folder):
        _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
