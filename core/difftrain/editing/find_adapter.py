"""Finds the weights that ``--adapter`` means, and what their run recorded about itself. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftrain.checkpoints.resume_state import read_record
from difftrain.errors import CheckpointError, printable
from difftrain.model.low_rank.lora_file import ADAPTER_FILE
from difftrain.model.whole_model.write_model import CONFIG_FILE
from difftrain.output.output_dir import exported_files, is_checkpoint_name, list_checkpoints, step_of


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """An adapter's files as training wrote them."""

    path: Path
    """A file, or a folder that the adapter's :meth:`~difftrain.Adapter.read` takes."""
    step: int | None
    """None if nothing says how long it was trained."""

    @property
    def name(self) -> str:
        return self.path.stem if self.step is None else f"step {self.step}"


@dataclass(frozen=True, kw_only=True)
class FoundAdapter:
    """The weights to use, in the order of the sheet's columns, and their run."""

    weights: tuple[TrainedWeights, ...]
    config: Mapping[str, Any] | None
    """The options of the run; None for a file without one."""
    recorded_in: Path | None
    """The checkpoint that holds them."""
    dtype: str
    """Number format of the trained weights, as torch names it."""
    home: Path
    """The folder where edits go unless another is named."""


def find_adapter(named: Path, steps: Sequence[int] | None) -> FoundAdapter:
    """Return the adapter of a run's folder, of a checkpoint's, or in a file.

    Args:
        named: As typed after ``--adapter``.
        steps: As :attr:`~difftrain.editing.asked_edit.AskedEdit.checkpoints`.

    Raises:
        CheckpointError: If there is none, or not the steps.
    """
    if not named.exists():
        raise CheckpointError(
            f"--adapter {printable(named)} does not exist{_nearby(named)}\n"
            "hint: name a run's output folder, one of its checkpoint-N folders, or a .safetensors file"
        )
    if named.is_dir() and (checkpoints := list_checkpoints(named)):
        chosen = _chosen(checkpoints, steps, named)
        return _of_run(chosen[-1], [TrainedWeights(path=path, step=step_of(path)) for path in chosen], named)
    folder = named if named.is_dir() else named.parent
    if (folder / CONFIG_FILE).is_file():
        return _whole_model(folder, steps)
    if steps is not None:
        raise CheckpointError(f"--checkpoints: {printable(named)} is no run's folder with checkpoints; leave it out")
    if folder in list_checkpoints(folder.parent):
        return _of_run(folder, [TrainedWeights(path=named, step=step_of(folder))], folder.parent)
    file = _only_file(named)
    if checkpoints := list_checkpoints(folder):
        last = checkpoints[-1]
        is_final = file in exported_files(folder)
        return _of_run(last, [TrainedWeights(path=file, step=step_of(last) if is_final else None)], folder)
    weights = TrainedWeights(path=file, step=step_of(folder) if is_checkpoint_name(folder.name) else None)
    return FoundAdapter(weights=(weights,), config=None, recorded_in=None, dtype="float32", home=folder)


def _whole_model(folder: Path, steps: Sequence[int] | None) -> FoundAdapter:
    """Return the model in a folder of its own, by the run or checkpoint that it lies in.

    Raises:
        CheckpointError: If it lies in none.
    """
    if list_checkpoints(folder.parent) or folder.parent in list_checkpoints(folder.parent.parent):
        return find_adapter(folder.parent, steps)
    raise CheckpointError(
        f"--adapter {printable(folder)} is a whole model, and not in a run's folder\n"
        "hint: name the output folder of the run that trained it"
    )


def _of_run(record: Path, weights: Sequence[TrainedWeights], home: Path) -> FoundAdapter:
    saved = read_record(record)
    return FoundAdapter(weights=tuple(weights), config=saved.config, recorded_in=record, dtype=saved.dtype, home=home)


def _chosen(there: Sequence[Path], steps: Sequence[int] | None, run: Path) -> list[Path]:
    if steps is None:
        return [there[-1]]
    by_step = {step_of(path): path for path in there}
    missing = [step for step in steps if step not in by_step]
    if missing:
        raise CheckpointError(
            f"--checkpoints: {printable(run)} has no checkpoint of step {', '.join(map(str, missing))}; "
            f"it has {', '.join(map(str, by_step))}"
        )
    return [by_step[step] for step in steps] if steps else list(there)


def _only_file(named: Path) -> Path:
    if named.is_file():
        return named
    usual = named / ADAPTER_FILE
    files = [usual] if usual.is_file() else sorted(named.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    found = f"has {len(files)} .safetensors files" if files else "has no checkpoint and no .safetensors file"
    raise CheckpointError(
        f"--adapter {printable(named)} {found}\n"
        f"hint: name {'one of them' if files else 'the output folder of a run that has saved a checkpoint'}"
    )


def _nearby(named: Path) -> str:
    """Return which runs are beside the path, to choose from."""
    beside = named.parent if named.parent.is_dir() else Path()
    try:
        runs = sorted(path for path in beside.iterdir() if path.is_dir() and list_checkpoints(path))
    except OSError:
        return ""
    return f"; runs beside it: {', '.join(printable(path) for path in runs[:3])}" if runs else ""
