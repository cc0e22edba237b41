"""Compiles the model's blocks for each shape of batches before the first step, so that no step waits for it.

Compiled blocks fit one shape each: torch.compile could make code for all of them, but that code is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from difftrain.data.streaming.batch_shapes import BatchShape, ComingBatches
from difftrain.data.streaming.stream import MicroBatch
from difftrain.types import Batch, Reporter


def shapes_to_compile(shapes: Sequence[BatchShape], limit: int, reporter: Reporter) -> list[BatchShape]:
    """Return the largest shape and those that come most often, largest first; say it if some are left out."""
    if len(shapes) <= limit:
        return list(shapes)
    reporter.say(
        f"note: batches come in {len(shapes)} shapes, and compile_shapes_limit is {limit}: only the largest and the "
        "most frequent are compiled for now, the others when their first batch comes"
    )
    often = sorted(range(1, len(shapes)), key=lambda number: -shapes[number].times)[: limit - 1]
    return [shapes[number] for number in sorted([0, *often])]


def compile_for(
    shapes: Sequence[BatchShape],
    coming: ComingBatches,
    trial_step: Callable[[Batch], object],
    reporter: Reporter,
    *,
    before: int,
) -> None:
    """Compute a step for each shape, which compiles what it needs.

    Args:
        trial_step: One forward and backward that changes nothing.
        before: Shapes that are compiled already, for the count that is shown.
    """
    if not shapes:
        return
    with reporter.phase("compile for the other batch shapes", total=len(shapes)) as phase:
        for number, shape in enumerate(shapes, before + 1):
            phase.begin(f"compile {number} of {before + len(shapes)}: {shape.name}")
            trial_step(coming.read(shape))
            phase.advance()


def announce_compiling(
    micro_batches: Iterator[MicroBatch], compiled: Sequence[str] | None, reporter: Reporter
) -> Iterator[MicroBatch]:
    """Yield the micro-batches; say it before the first one of each shape that is not compiled yet.

    Args:
        compiled: Names of the shapes that are; None if none has to be.
    """
    known = {"", *(compiled or ())}  # a stream may name no shapes
    for micro in micro_batches:
        if compiled is not None and micro.shape not in known:
            known.add(micro.shape)
            reporter.say(f"note: the first batch of {micro.shape}; compiling for it takes about a minute")
        yield micro
