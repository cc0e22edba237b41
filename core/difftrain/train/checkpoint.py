"""Checkpoints: complete or absent, rotated, resumed exactly.

``checkpoint-N`` holds the adapter as other programs load it and, under ``resume/``, what is needed to go on as
if the run had never stopped. No generator state is among it: every random draw of a run comes from a seed of its
place (see :mod:`difftrain.data.seeding`), so the step and the visits that were taken are enough.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from difftrain.data.patience import refusal
from difftrain.data.rounds import Position
from difftrain.errors import CheckpointError, MachineError, NotFinite
from difftrain.train.optimizer_state import DamagedState, check_storable, load_optimizer, save_optimizer
from difftrain.train.output_dir import ADAPTER_FILE, RESUME_FOLDER, list_checkpoints
from difftrain.train.resume_state import (
    OPTIMIZER_FILE,
    STATE_FILE,
    VISITS_FILE,
    WEIGHTS_FILE,
    ResumeState,
    damaged,
    sha256_of,
    trained_dtype,
)
from difftrain.train.step import Trainee


def save_checkpoint(run: Trainee, output_dir: Path) -> Path:
    """Write ``checkpoint-N`` beside its final name, flush, rename.

    Only the first process writes: the others have the same weights and optimizer.

    Raises:
        NotFinite: If a weight is NaN or infinite; nothing is written.
        MachineError: If it cannot be written; what was written of it is taken away, earlier ones are whole.
    """
    final = output_dir / f"checkpoint-{run.step}"
    check_finite(run)
    temporary = output_dir / f".{final.name}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / RESUME_FOLDER).mkdir(parents=True)
        _write_parts(run, temporary)
        _flush(temporary)
        _remove(final)
        temporary.rename(final)
        _flush_one(output_dir)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise (_not_written(final, error) if isinstance(error, OSError) else error) from error
    return final


def check_finite(run: Trainee) -> None:
    """Make sure that every trained weight is a finite number.

    Raises:
        NotFinite: With how many are not.
    """
    broken = [name for name, tensor in run.plan.adapter.state(run.bare_denoiser).items() if not tensor.isfinite().all()]
    if broken:
        raise NotFinite(
            f"{len(broken)} trained weights are not finite after step {run.step}, {broken[0]} among them\n"
            "hint: lower learning_rate"
        )


def rehearse(run: Trainee, output_dir: Path) -> None:
    """Write and read the optimizer's state once, so that what cannot be saved is known after the first step.

    Raises:
        CheckpointError: If the optimizer keeps what cannot be saved.
        MachineError: If nothing can be written.
    """
    trial = output_dir / f".checkpoint-{run.step}.trial"
    try:
        check_storable(run.optimizer, run.built_with, trial)
    except OSError as error:
        raise _not_written(trial, error) from error


def rotate(output_dir: Path, keep: int | None) -> None:
    """Take away the oldest checkpoints beyond ``keep``; None keeps all."""
    if keep is not None:
        for old in list_checkpoints(output_dir)[:-keep]:
            _remove(old)


def export_adapter(run: Trainee, path: Path) -> None:
    """Write the adapter as other programs load it, complete or not at all.

    Raises:
        MachineError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        _write_adapter(run, temporary)
        _flush_one(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _not_written(path, error) from error


def load_checkpoint(run: Trainee, checkpoint: Path, state: ResumeState) -> None:
    """Put adapter, optimizer, step and position back into ``run``.

    Raises:
        CheckpointError: If a file is damaged or does not fit the run's adapter or optimizer.
    """
    folder = checkpoint / RESUME_FOLDER
    try:
        weights = load((folder / WEIGHTS_FILE).read_bytes())
        order = load((folder / VISITS_FILE).read_bytes())["taken"].tolist()
        run.plan.adapter.load_state(run.bare_denoiser, weights)
        load_optimizer(run.optimizer, folder / OPTIMIZER_FILE)
    except (OSError, ValueError, LookupError, SafetensorError, DamagedState) as error:
        raise damaged(checkpoint, error) from error
    run.step, run.skipped = state.step, state.skipped
    run.position = Position(epoch=state.epoch, samples=len(order), order=order)


def _write_parts(run: Trainee, folder: Path) -> None:
    _write_adapter(run, folder / ADAPTER_FILE)
    resume = folder / RESUME_FOLDER
    _write_tensors(resume / WEIGHTS_FILE, run.plan.adapter.state(run.bare_denoiser))
    _write_tensors(resume / VISITS_FILE, {"taken": torch.tensor(list(run.position.taken), dtype=torch.int64)})
    save_optimizer(run.optimizer, run.built_with, resume / OPTIMIZER_FILE)
    state = ResumeState(
        step=run.step,
        epoch=run.position.epoch,
        samples=run.position.samples,
        processes=run.accelerator.num_processes,
        config=run.plan.config.model_dump(mode="json"),
        plugins=run.plan.plugins.versions(),
        data=dict(run.data),
        skipped=run.skipped,
        dtype=trained_dtype(run.plan),
        files={path.name: sha256_of(path) for path in sorted(resume.iterdir())},
    )
    (resume / STATE_FILE).write_text(state.model_dump_json(indent=1), encoding="utf-8")


def _write_adapter(run: Trainee, path: Path) -> None:
    tensors, header = run.plan.adapter.export(run.bare_denoiser, run.plan.family.lora_prefix)
    _write_tensors(path, tensors, header)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    """As safetensors. Written by us, since the library's own files are for their owner alone, whatever the umask."""
    path.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata=header))


def _not_written(path: Path, error: OSError) -> MachineError:
    return MachineError(refusal(f"{path} cannot be written, what was saved before is whole", error))


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
