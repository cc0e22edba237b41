"""Between the stream and the steps: tells how full batches are and which datasets take part, and clears old crops."""

from __future__ import annotations

from collections.abc import Iterator

from difftrain.data.caching.old_crops import OldCrops
from difftrain.data.streaming.rounds import Rounds
from difftrain.data.streaming.stream import MicroBatch
from difftrain.startup.run_length import describe_schedule
from difftrain.types import Reporter

SPARSE = 0.7
"""Batches less full than this are worth a hint."""


def say_batches(rounds: Rounds, reporter: Reporter) -> None:
    """Say how full the batches of the coming epoch are, and when each dataset takes part, if that changes."""
    batches = rounds.batches_of(rounds.start.epoch)
    if batches:
        share = batches.fill_share
        reporter.say(describe_fill(share, len(batches)))
        shapes = len({batch[0].shape_key for batch, _ in batches.kinds()})
        if share < SPARSE and shapes > 1:
            reporter.say(
                f"hint: a batch holds samples of one shape, and the sizes of targets and references make {shapes} "
                "shapes; crop_aspect closest with a few crop_aspect_buckets, or references of fewer sizes, fill them"
            )
    if rounds.is_scheduled:
        reporter.say(f"datasets take part: {describe_schedule(rounds)}")


def describe_fill(share: float, count: int) -> str:
    """Return what to say about the batches of an epoch: ``40 batches an epoch, 92 % full``."""
    return f"{count} {'batch' if count == 1 else 'batches'} an epoch, {100 * share:.0f} % full"


def clear_old_crops(
    micro_batches: Iterator[MicroBatch], old: OldCrops, epoch: int, reporter: Reporter
) -> Iterator[MicroBatch]:
    """Yield the micro-batches; when an epoch begins, clear the crops of the one before.

    Args:
        epoch: The epoch before the first of them, whose crops are there; counts from 0.
    """
    for micro in micro_batches:
        if micro.position.epoch != epoch:
            epoch = micro.position.epoch
            old.clear(epoch, reporter)
        yield micro


def say_changes(micro_batches: Iterator[MicroBatch], step: int, reporter: Reporter) -> Iterator[MicroBatch]:
    """Yield the micro-batches; say it when datasets begin or cease to take part.

    Args:
        step: Optimizer steps done before the first of them.
    """
    before: frozenset[str] | None = None
    for micro in micro_batches:
        if before is not None and micro.active != before:
            changes = [
                f"{', '.join(map(repr, sorted(names)))} {verb}"
                for verb, names in (("begins", micro.active - before), ("ends", before - micro.active))
                if names
            ]
            reporter.say(f"from step {step + 1} on (epoch {micro.position.epoch + 1}): {'; '.join(changes)}")
        before = micro.active
        yield micro
        step += micro.ends_step
