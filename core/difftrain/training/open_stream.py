"""Opens the stream of batches that a run trains on, at the run's position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difftrain.data.streaming.batch_reader import BatchReader
from difftrain.data.streaming.rounds import Position, Rounds
from difftrain.data.streaming.stream import BatchStream, CachedStream, StreamPosition
from difftrain.planning.run_plan import RunPlan
from difftrain.startup.run_length import rounds_of, steps_left
from difftrain.training.agreement import data_facts
from difftrain.types import Sample

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class OpenedStream:
    """A stream and what the run has to know about it."""

    batches: BatchStream
    position: StreamPosition
    """Where it continues."""
    steps_left: int | None
    """Optimizer steps to its end; None if it has no end, or the end is unknown."""
    facts: Mapping[str, str]
    """What each dataset holds: compared between processes, and with what a checkpoint was trained on."""
    rounds: Rounds | None = None
    """Which samples come in which batches; None where that is not known before."""


def open_stream(
    plan: RunPlan,
    samples: Sequence[Sample],
    reader: BatchReader,
    accelerator: Accelerator,
    saved: StreamPosition | None,
    step: int = 0,
) -> OpenedStream:
    """Open the stream of a run.

    Args:
        saved: The position of a checkpoint; None for a new run.
        step: Optimizer steps done before it.

    Raises:
        DataError: If the data shows no samples.
        CheckpointError: If the position comes from another kind of stream.
    """
    start = Position.restored(saved.epoch, saved.state()) if saved else Position()
    rounds = rounds_of(plan, samples, start=start, step=step, processes=accelerator.num_processes)
    batches = CachedStream(
        rounds, reader, process=accelerator.process_index, pin_memory=accelerator.device.type == "cuda"
    )
    asked = {dataset.id: dataset.asked for dataset in plan.data.target_sets}
    facts = data_facts(samples, rounds.rules, asked)
    return OpenedStream(batches=batches, position=start, steps_left=steps_left(rounds), facts=facts, rounds=rounds)
