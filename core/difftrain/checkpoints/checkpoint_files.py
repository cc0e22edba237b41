"""Checkpoints: complete or absent, rotated, resumed exactly.

``checkpoint-N`` holds the adapter as other programs load it and, under ``resume/``, everything needed to continue as
if the run had never stopped. It holds no generator state: every random draw of a run is seeded by its place (see
:mod:`difftrain.data.seeding`), so the step and the visits already taken are enough.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from difftrain.checkpoints.gather import GatheredState, gather_exported, gather_optimizer_of
from difftrain.checkpoints.resume_state import (
    OPTIMIZER_FILE,
    STATE_FILE,
    VISITS_FILE,
    WEIGHTS_FILE,
    ResumeState,
    damaged,
    sha256_of,
    trained_dtype,
)
from difftrain.data.streaming.stream import SavedPosition
from difftrain.errors import CheckpointError, MachineError, NotFinite
from difftrain.machine.retries import refusal
from difftrain.model.tensor_file import write_tensors
from difftrain.output.output_dir import EXPORT_FOLDER, RESUME_FOLDER, list_checkpoints
from difftrain.publishing.file_metadata import add_metadata
from difftrain.publishing.run_facts import RunFacts, facts_of
from difftrain.steps.optimizer_state import DamagedState, check_storable, load_optimizer, write_optimizer
from difftrain.steps.sharding import placed_like

if TYPE_CHECKING:
    from difftrain.steps.training_state import TrainingState


def write_checkpoint(state: TrainingState, gathered: GatheredState, output_dir: Path) -> Path:
    """Write ``checkpoint-N`` under a temporary name, flush, rename. Call it in the main process only.

    Args:
        gathered: The state collected from all processes, see :func:`~difftrain.checkpoints.gather.gather_state`.

    Raises:
        NotFinite: If a weight is NaN or infinite; nothing is written.
        MachineError: If it cannot be written; the partial files are removed and earlier checkpoints stay intact.
    """
    final = output_dir / f"checkpoint-{state.step}"
    for weights in (gathered.weights, gathered.exported):
        check_finite((name for name, tensor in weights.items() if not tensor.isfinite().all()), state.step)
    temporary = output_dir / f".{final.name}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / RESUME_FOLDER).mkdir(parents=True)
        _write_parts(state, gathered, temporary)
        _flush(temporary)
        _remove(final)
        temporary.rename(final)
        _flush_one(output_dir)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise (_not_written(final, error) if isinstance(error, OSError) else error) from error
    return final


def check_finite(broken: Iterable[str], step: int) -> None:
    """Raise if any trained weight is not finite.

    Args:
        broken: Names of the weights that are NaN or infinite.

    Raises:
        NotFinite: With the number of broken weights.
    """
    names = list(broken)
    if names:
        raise NotFinite(
            f"{len(names)} trained weights are not finite after step {step}, among them {names[0]}\n"
            "hint: lower learning_rate"
        )


def check_can_save(state: TrainingState, output_dir: Path) -> None:
    """Write and read the optimizer's state once, so that a state that cannot be saved is found after the first step.

    Call it in every process; the main one writes.

    Raises:
        CheckpointError: If the optimizer keeps something that cannot be saved.
        MachineError: If nothing can be written.
    """
    gathered = gather_optimizer_of(state)
    if not state.accelerator.is_main_process:
        return
    trial = output_dir / f".checkpoint-{state.step}.trial"
    try:
        check_storable(gathered, trial)
    except OSError as error:
        raise _not_written(trial, error) from error


def rotate(output_dir: Path, keep: int | None) -> None:
    """Delete the oldest checkpoints beyond ``keep``; None keeps all."""
    if keep is not None:
        for old in list_checkpoints(output_dir)[:-keep]:
            _remove(old)


def export_adapter(state: TrainingState, output_dir: Path) -> None:
    """Write the adapter, as other programs load it, to the output folder. Call in every process; the main one writes.

    Raises:
        MachineError: If it cannot be written.
    """
    weights = gather_exported(state)
    if state.accelerator.is_main_process:
        write_adapter(state, weights, output_dir, output_dir)


def write_adapter(state: TrainingState, weights: Mapping[str, Tensor], output_dir: Path, place: Path) -> Path:
    """Let the adapter write its files, each complete or absent, and return their path.

    Args:
        weights: All weights, unsharded.
        place: An existing folder for the files; or a name without extension, for a single file or a new folder.

    Raises:
        MachineError: If they cannot be written.
    """
    temporary = output_dir / EXPORT_FOLDER
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_described(state, weights, temporary)
        _flush(temporary)
        written = sorted(temporary.iterdir())
        if place.is_dir():
            for path in written:
                if path.is_dir():
                    _remove(place / path.name)
                path.replace(place / path.name)
        elif len(written) == 1:
            place = place.with_name(f"{place.name}{written[0].suffix}")
            written[0].replace(place)
        else:
            temporary.rename(place)
    except OSError as error:
        raise _not_written(f"the adapter in {output_dir}", error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def load_checkpoint(state: TrainingState, checkpoint: Path, saved: ResumeState) -> None:
    """Restore adapter, optimizer, step and position into ``state``, whatever the sharding was and is now.

    Raises:
        CheckpointError: If a file is damaged or does not fit the run's adapter or optimizer.
    """
    folder = checkpoint / RESUME_FOLDER
    try:
        weights = load((folder / WEIGHTS_FILE).read_bytes())
        position = load((folder / VISITS_FILE).read_bytes())
        own = state.plan.adapter.state(state.bare_denoiser)
        placed = {name: placed_like(tensor, own[name]) if name in own else tensor for name, tensor in weights.items()}
        state.plan.adapter.load_state(state.bare_denoiser, placed)
        load_optimizer(state.optimizer, state.named_trained, folder / OPTIMIZER_FILE)
    except (OSError, ValueError, LookupError, SafetensorError, DamagedState) as error:
        raise damaged(checkpoint, error) from error
    state.step, state.skipped = saved.step, saved.skipped
    state.position = SavedPosition(epoch=saved.epoch, samples=saved.samples, tensors=position)


def _write_parts(state: TrainingState, gathered: GatheredState, folder: Path) -> None:
    _write_described(state, gathered.exported, folder)
    resume = folder / RESUME_FOLDER
    write_tensors(resume / WEIGHTS_FILE, gathered.weights)
    write_tensors(resume / VISITS_FILE, state.position.state())
    write_optimizer(gathered.optimizer, resume / OPTIMIZER_FILE)
    saved = ResumeState(
        step=state.step,
        epoch=state.position.epoch,
        samples=state.position.samples,
        processes=state.accelerator.num_processes,
        config=state.plan.config.model_dump(mode="json"),
        adapter=state.plan.adapter.fixed(),
        plugins=state.plan.plugins.versions(),
        data=dict(state.data),
        skipped=state.skipped,
        dtype=trained_dtype(state.plan),
        files={path.name: sha256_of(path) for path in sorted(resume.iterdir())},
    )
    (resume / STATE_FILE).write_text(saved.model_dump_json(indent=1), encoding="utf-8")


def _write_described(state: TrainingState, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Let the adapter write its files into an empty folder, and add what others may know of the run."""
    prefix = state.plan.family.lora_prefix
    state.plan.adapter.write(weights, folder, prefix)
    state.plan.adapter.write_config(state.bare_denoiser, folder, prefix)
    add_metadata(folder, facts_of_state(state))


def facts_of_state(state: TrainingState) -> RunFacts:
    """Return what others may know of the run now."""
    return facts_of(state.plan, step=state.step, data=state.data, processes=state.accelerator.num_processes)


def _not_written(what: object, error: OSError) -> MachineError:
    return MachineError(refusal(f"{what} cannot be written; earlier checkpoints are intact", error))


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that a kill meanwhile leaves no half of it under its name."""
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
