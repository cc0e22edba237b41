"""The measurements in the closing words of a run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_losses(losses: Mapping[int, float], *, count: int, held_out: bool) -> str:
    """Return ``loss on the same 4 held-out samples and noise: 0.5000 at step 0, 0.4000 at step 300``."""
    listed = ", ".join(f"{loss:.4f} at step {step}" for step, loss in sorted(losses.items()))
    return f"loss on the same {count} {'held-out ' if held_out else ''}samples and noise: {listed}"


def describe_psnr(validations: Mapping[int, Mapping[str, Any]], *, held_out: bool, seeds: int) -> str | None:
    """Return the score of doing nothing, and the first, the best and the last validation.

    Args:
        validations: Lines of the metrics file by step, all of the same images, drawn the same way.
        held_out: Whether the images come from held-out samples.
        seeds: Number of seeds that each image is drawn with.

    Returns:
        None if nothing was measured.
    """
    if not validations:
        return None
    last = validations[max(validations)]
    means = {step: line["psnr"] for step, line in validations.items()}
    best = max(sorted(means), key=lambda step: means[step])
    parts = [f"reference {last['psnr_reference']:.1f} dB"] if "psnr_reference" in last else []
    parts += [f"at step {step} {means[step]:.1f} dB" for step in sorted({min(means), best, max(means)})]
    drawn = describe_images(len(last["psnr_by_image"]), held_out=held_out, seeds=seeds)
    return f"PSNR to the target, {drawn}: {', '.join(parts)}"


def describe_images(count: int, *, held_out: bool, seeds: int) -> str:
    """Return ``mean of 8 held-out images x 3 seeds``."""
    group = "held-out" if held_out else "training"
    drawn = f"{count} {group} image{'' if count == 1 else 's'}" + (f" x {seeds} seeds" if seeds > 1 else "")
    return drawn if count * seeds == 1 else f"mean of {drawn}"
