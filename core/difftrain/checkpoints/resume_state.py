"""What a checkpoint records about its run, apart from tensors, and what a resumed run may change. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from difftrain.config.messages import explain
from difftrain.errors import CheckpointError
from difftrain.output.output_dir import (
    RESUME_FOLDER,
    foreign_checkpoints,
    is_checkpoint_name,
    list_checkpoints,
    step_of,
)

if TYPE_CHECKING:
    from difftrain.planning.run_plan import RunPlan

FORMAT = 3
"""Version of the checkpoint's file format.

1 kept the optimizer in two files, and no visits; 2 keyed the optimizer's state by parameter index, not by name.
"""
STATE_FILE = "state.json"
WEIGHTS_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
VISITS_FILE = "visits.safetensors"
Resumed = tuple[Path, "ResumeState"]
"""The checkpoint that a run continues from, and what it records about its run."""
_PLACES = ("output_dir", "resume_from_checkpoint", "plugins")
"""Options that say where files are; moving them does not make it another run."""
_FIXED: Mapping[str, str] = {
    "model_family": "the adapter belongs to another model",
    "model_flavour": "the adapter belongs to another model",
    "model_type": "the checkpoint holds other weights",
    "lora_type": "the checkpoint holds another kind of adapter",
    "optimizer": "the checkpoint holds another optimizer's state",
    "seed": "it decides the order of the samples, so some would never be seen and others twice",
}
"""Options that a resumed run must keep, and why; the adapter's own are added to them."""


class ResumeState(BaseModel):
    """Everything a checkpoint records about its run."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    format: Literal[3] = 3
    step: int = Field(ge=0)
    epoch: int = Field(ge=0)
    samples: int = Field(ge=0)
    """Samples of that epoch already taken, for messages; only the stream knows exactly where the data continues."""
    processes: int = Field(ge=1)
    config: dict[str, Any]
    adapter: dict[str, Any] | None = None
    """What :meth:`difftrain.Adapter.fixed` gave, which may come from a file that ``config`` only names; None in
    checkpoints of earlier versions."""
    plugins: dict[str, str]
    """Version of each plugin by name."""
    data: dict[str, str] = {}
    """What each dataset held, see :func:`difftrain.training.agreement.data_facts`."""
    skipped: int = Field(0, ge=0)
    """Updates left out so far because they were not finite."""
    dtype: str
    """Number format of the trained weights, as torch names it."""
    files: dict[str, str]
    """sha256 of each file beside this one."""


def trained_dtype(plan: RunPlan) -> str:
    """Return the number format of the trained weights, as torch names it."""
    low = plan.optimizer.parameter_dtype == "bfloat16" and plan.config.mixed_precision == "bf16"
    return "bfloat16" if low else "float32"


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's bytes.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """Return the checkpoint to resume: a path, a name in ``output_dir``, or ``latest`` for the highest step if there is
    one; ``none`` gives None.

    Raises:
        CheckpointError: If the path is not a difftrain checkpoint, or ``output_dir`` holds another program's.
    """
    if wanted == "none":
        return None
    existing = list_checkpoints(output_dir)
    if wanted == "latest":
        if foreign := foreign_checkpoints(output_dir):
            raise CheckpointError(foreign_checkpoint(foreign[-1]))
        return existing[-1] if existing else None
    for candidate in (Path(wanted).expanduser(), output_dir / wanted):
        if (candidate / RESUME_FOLDER).is_dir():
            return candidate
        if any(candidate.glob("*.safetensors")):
            raise CheckpointError(f"resume_from_checkpoint: {foreign_checkpoint(candidate)}")
    there = ", ".join(path.name for path in existing) or "none"
    raise CheckpointError(f"resume_from_checkpoint: {wanted} is not a checkpoint; {output_dir} has: {there}")


def find_state(plan: RunPlan) -> Resumed | None:
    """Return the checkpoint that a run continues from and its state; None for a run that starts from the beginning.

    Raises:
        CheckpointError: If it is not a difftrain checkpoint, cannot be read, or does not fit the run's options.
    """
    checkpoint = find_checkpoint(plan.config.output_dir, plan.config.resume_from_checkpoint)
    if checkpoint is None:
        return None
    saved = read_state(checkpoint)
    check_changes(saved, plan, checkpoint)
    return checkpoint, saved


def read_state(checkpoint: Path) -> ResumeState:
    """Read what the checkpoint records about its run, after checking that its files are the ones written.

    Raises:
        CheckpointError: If another program or another version wrote it, or it is damaged.
    """
    saved, folder = read_record(checkpoint), checkpoint / RESUME_FOLDER
    try:
        for name in (WEIGHTS_FILE, VISITS_FILE, OPTIMIZER_FILE):
            if saved.files.get(name) != sha256_of(folder / name):
                raise ValueError(f"{name} has changed since it was written")
    except OSError as error:
        raise damaged(checkpoint, f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise damaged(checkpoint, str(error)) from error
    return saved


def read_record(checkpoint: Path) -> ResumeState:
    """Read what the checkpoint records about its run, and nothing else.

    Raises:
        CheckpointError: As :func:`read_state`.
    """
    folder = checkpoint / RESUME_FOLDER
    if not folder.is_dir():
        raise CheckpointError(foreign_checkpoint(checkpoint))
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        written = content.get("format", 1) if isinstance(content, dict) else None
        if isinstance(written, int) and written != FORMAT:
            raise CheckpointError(_other_format(checkpoint, written))
        saved = ResumeState.model_validate(content)
        named = step_of(checkpoint) if is_checkpoint_name(checkpoint.name) else saved.step
        if named != saved.step:
            raise ValueError(f"{STATE_FILE} belongs to step {saved.step}")
    except ValidationError as error:
        found = explain(error, content if isinstance(content, dict) else {})
        raise damaged(checkpoint, f"{STATE_FILE}: {'; '.join(found.values())}") from error
    except OSError as error:
        raise damaged(checkpoint, f"{error.filename} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(checkpoint, str(error)) from error
    return saved


def _other_format(checkpoint: Path, written: int) -> str:
    return (
        f"{checkpoint} has format {written}, written by another version of difftrain; this one reads format {FORMAT}\n"
        "hint: continue with the version that wrote it, or start over with --resume_from_checkpoint none; other "
        "programs can still load its adapter"
    )


def foreign_checkpoint(checkpoint: Path) -> str:
    """Return the message for a checkpoint folder that difftrain did not write."""
    return (
        f"{checkpoint} was written by another program (it has no {RESUME_FOLDER} folder), so it cannot be resumed\n"
        "hint: set another output_dir; or start over with --resume_from_checkpoint none, which moves what is there "
        "into a folder beside it"
    )


def damaged(checkpoint: Path, error: object) -> CheckpointError:
    """Return the error for a checkpoint that cannot be read; its hint names another one to resume."""
    others = [str(path) for path in reversed(list_checkpoints(checkpoint.parent)) if path.name != checkpoint.name]
    hint = (
        f"resume another one: --resume_from_checkpoint {others[0]}"
        if others
        else "start over: --resume_from_checkpoint none"
    )
    return CheckpointError(f"{checkpoint} is damaged: {error}\nhint: {hint}")


def check_changes(saved: ResumeState, plan: RunPlan, checkpoint: Path) -> None:
    """Refuse changes that a resumed run cannot take over; it takes over all others, see :func:`changes_since`.

    Raises:
        CheckpointError: Names every such option with both values.
    """
    now = plan.config.model_dump(mode="json")
    problems = [
        f"{key} was {_summary(saved.config[key])} and is now {_summary(now.get(key))}: {why}"
        for key, why in _FIXED.items()
        if key in saved.config and saved.config[key] != now.get(key)
    ]
    if (before := _fixed_before(saved, plan)) is not None:
        problems += [
            f"{key} was {_summary(before.get(key))} and is now {_summary(value)}: the trained weights depend on it"
            for key, value in json.loads(json.dumps(plan.adapter.fixed())).items()
            if before.get(key) != value
        ]
    problems += [
        f"{key} was {_summary(saved.config[key])} and is now {_summary(value)}: the checkpoint has weights for other "
        "modules"
        for key, value in plan.family.fixed().items()
        if key in saved.config and saved.config[key] != value
    ]
    if saved.dtype != trained_dtype(plan):
        problems.append(
            f"mixed_precision was {_summary(saved.config.get('mixed_precision'))}, with {saved.dtype} weights, and is "
            f"now {plan.config.mixed_precision}, with {trained_dtype(plan)} weights"
        )
    if problems:
        raise CheckpointError(
            f"{checkpoint} cannot be resumed with these options: " + "; ".join(problems) + "\n"
            "hint: use the values that the checkpoint was trained with, or start over: --resume_from_checkpoint none"
        )


def _fixed_before(saved: ResumeState, plan: RunPlan) -> Mapping[str, object] | None:
    """Return what the adapter's options fixed; None if another version wrote them: the weights are compared later."""
    if saved.adapter is not None:
        return saved.adapter
    adapter = type(plan.adapter)
    try:
        return adapter(**{key: saved.config[key] for key in adapter.model_fields if key in saved.config}).fixed()
    except ValidationError:
        return None


def changes_since(saved: ResumeState, plan: RunPlan, processes: int) -> list[str]:
    """List what has changed and is taken over: ``train_batch_size 2 -> 3``. Places of files do not count."""
    now = plan.config.model_dump(mode="json")
    pairs = {key: (saved.config.get(key), value) for key, value in now.items() if key not in _PLACES}
    before, after = pairs.pop("optimizer_config", ({}, {}))
    pairs |= _by_key("optimizer_config.", before or {}, after or {})
    pairs |= _by_key("plugin ", saved.plugins, plan.plugins.versions())
    pairs["processes"] = saved.processes, processes
    return [
        f"{name} {_summary(before)} -> {_summary(after)}" for name, (before, after) in pairs.items() if before != after
    ]


def data_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """List what has changed in the datasets: ``'edits' had 100 samples, has 101``."""
    changes = []
    for name in dict.fromkeys([*before, *now]):
        if name not in now:
            changes.append(f"{name!r} is gone ({_count(before[name])})")
        elif name not in before:
            changes.append(f"{name!r} is new ({_count(now[name])})")
        elif _count(before[name]) != _count(now[name]):
            changes.append(f"{name!r} had {_count(before[name])}, has {_count(now[name])}")
        elif before[name] != now[name]:
            changes.append(f"{name!r} has the same number of samples, but other images, captions or crops")
    return changes


def _count(facts: str) -> str:
    return facts.partition(" (")[0]


def _by_key(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {f"{prefix}{key}": (before.get(key), after.get(key)) for key in dict.fromkeys([*before, *after])}


def _summary(value: object) -> str:
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
