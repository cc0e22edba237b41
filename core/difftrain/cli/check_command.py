"""``difftrain check``: everything that comes before loading weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from difftrain.cli.invocation import Invocation

if TYPE_CHECKING:
    from difftrain.data.samples.prepare_samples import PreparedData
    from difftrain.planning.run_plan import RunPlan
    from difftrain.startup.prepare_run import PreparedRun


def check(invocation: Invocation) -> int:
    """Plan the run, prepare its data, find its model, and print what the run would do.

    ``--json`` prints one object to standard output: ``status``, ``problems``, ``notes`` and the counts.

    Raises:
        DifftrainError: For anything that the user can fix.
    """
    found = _examine(invocation)
    print(json.dumps(found, indent=2, ensure_ascii=False) if invocation.json else _summary(found))
    return 0


def _examine(invocation: Invocation) -> dict[str, Any]:
    plan = invocation.plan()
    from difftrain.output.console import make_reporter
    from difftrain.startup.prepare_run import prepare_run

    prepared = prepare_run(plan, make_reporter(quiet=invocation.json), fast=invocation.fast)
    return {
        "status": "ok",
        "problems": [],
        "notes": [*plan.notes, *prepared.notes, *_removed(prepared)],
        "model": {
            "family": plan.family.name,
            "flavour": plan.flavour.name,
            "name": prepared.location.name,
            "denoiser": prepared.location.of_denoiser.name,
            "weights_of": list(prepared.recognised.flavours),
        },
        **{key: value for key, value in prepared.data.summary().items() if key != "notes"},
        "to_encode": {"captions": len(prepared.texts), "images": len(prepared.images)},
        "disk": [
            {"what": need.what, "folder": str(need.folder), "files": need.files, "bytes": need.bytes}
            for need in prepared.needs
        ],
        **_lengths(plan, prepared.data),
    }


def _removed(prepared: PreparedRun) -> list[str]:
    count = len(prepared.caches.removed)
    return [f"{count} damaged cache entries were removed; the run makes them again"] if count else []


def _lengths(plan: RunPlan, data: PreparedData) -> dict[str, float]:
    """Return batches and steps on one device; batches vary between epochs where the random draws change shapes."""
    from difftrain.data.streaming.epoch import fill_share
    from difftrain.startup.run_length import rounds_of, steps_left, total_steps

    rounds = rounds_of(plan, data.samples)
    batches = rounds.batches_of(0)
    return {
        "batches_per_epoch": len(batches),
        "batches_full": round(fill_share(batches, rounds.rules), 4),
        "steps_per_epoch": -(-len(batches) // plan.config.gradient_accumulation_steps),
        "total_steps": total_steps(plan, steps_left(rounds)),
    }


def _summary(found: Mapping[str, Any]) -> str:
    """Return the summary for people."""
    model = found["model"]
    weights = f" (weights of {' or '.join(model['weights_of'])})" if model["weights_of"] else ""
    denoiser = "" if model["denoiser"] == model["name"] else f" with the denoiser of {model['denoiser']}"
    lines = [f"model: {model['family']} {model['flavour']}, {model['name']}{denoiser}{weights}"]
    for name, dataset in found["datasets"].items():
        left_out = "".join(f", {count} left out by {why}" for why, count in dataset["left_out"].items())
        used = f", {dataset['samples']} samples" if dataset["samples"] else ""
        held_out = ", held out from training" if dataset["held_out"] else ""
        lines.append(f"dataset {name}: {dataset['images']} images{used}{held_out}{left_out}")
    for key in ("buckets", "reference_buckets"):
        if found[key]:
            listed = ", ".join(f"{size} ({count})" for size, count in found[key].items())
            lines.append(f"{key.replace('_', ' ')}: {listed}")
    full = f"{100 * found['batches_full']:.0f} % full"
    epoch = f"{found['batches_per_epoch']} batches ({full}) and {found['steps_per_epoch']} steps per epoch"
    lines.append(f"{found['samples']} samples, {epoch}, {found['total_steps']} steps in total")
    if found["held_out_samples"]:
        lines.append(f"{found['held_out_samples']} samples are held out: measured and drawn, never trained on")
    encoded = " and ".join(f"{count} {what}" for what, count in found["to_encode"].items() if count)
    lines.append(f"to encode: {encoded}" if encoded else "caches: complete, nothing to encode")
    lines += [_describe_need(need) for need in found["disk"] if need["files"]]
    lines += [f"note: {note}" for note in found["notes"]]
    lines.append("ready to train")
    return "\n".join(lines)


def _describe_need(need: Mapping[str, Any]) -> str:
    from difftrain.machine.disk import describe_bytes

    size = f", about {describe_bytes(need['bytes'])}" if need["bytes"] else ""
    return f"disk: {need['what']}: {need['files']} files{size}, in {need['folder']}"
