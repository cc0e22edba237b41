"""The output of ``difftrain plan``: a table, its assumptions, and the config lines for one card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from difftrain.planning.forecast.cards import GIB
from difftrain.planning.forecast.memory import available
from difftrain.planning.forecast.modes import ROOM

if TYPE_CHECKING:
    from difftrain.planning.forecast.choose import CardForecast, Forecast
    from difftrain.planning.model_plan import ModelPlan
    from difftrain.startup.batch_shape import LargestBatch
    from difftrain.startup.data_forecast import DataForecast, Shape
    from difftrain.types import ModelWork

SHOWN_SHAPES = 8
WIDTH = 120
"""Characters of a line where there is no terminal; the table takes about 100."""


def print_table(
    model: ModelPlan,
    shape: LargestBatch,
    work: ModelWork,
    rows: Sequence[CardForecast],
    explained: CardForecast,
    notes: Sequence[str],
    data: Sequence[str],
) -> None:
    """Print everything for people.

    Args:
        data: Lines of :func:`data_lines`.
        explained: The row of the card that was asked for.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    print(f"model: {_model(model)}, {work.trained:,} trained weights")
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("card", "base_model_precision", "recompute", "peak GiB", "of", "s/step", "hours", "fits"):
        numbers = heading in ("peak GiB", "of", "s/step", "hours")
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row.card.name, row.best, model, shape, work))
    table.add_section()
    table.add_row(*_cells(f"{explained.card.name}, as written", explained.as_written, model, shape, work))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    for line in (*_assumptions(model, shape, work), *data, *(f"note: {note}" for note in notes)):
        print(line)
    print(_advice(model, explained, work))


def as_json(
    model: ModelPlan,
    shape: LargestBatch,
    work: ModelWork,
    rows: Sequence[CardForecast],
    explained: CardForecast,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the same as one object for programs."""
    return {
        "status": "ok",
        "problems": [],
        "notes": list(notes),
        "model": _model(model),
        "batch": {
            "samples": work.samples,
            "target": list(shape.target),
            "references": [list(size) for size in shape.references],
            "tokens": dict(work.tokens),
            "source": shape.source,
        },
        "steps": shape.steps,
        "trained_weights": work.trained,
        "cards": [
            {
                "card": row.card.name,
                "available_gib": round(available(row.card) / GIB, 2),
                "best": _numbers(row.best, model, shape, work),
                "as_written": _numbers(row.as_written, model, shape, work),
            }
            for row in rows
        ],
        "card": explained.card.name,
        "config": config_lines(model, explained.best, work),
    }


def data_lines(data: DataForecast | None, lengths: Mapping[Shape, Mapping[str, int]]) -> list[str]:
    """Return what the data gives: an epoch, its shapes with their sequence lengths, the size of the caches."""
    if data is None:
        return []
    from difftrain.machine.disk import describe_bytes

    full = f"{100 * data.batches_full:.0f} % full"
    epoch = f"{data.batches_per_epoch} batches ({full}) and {data.steps_per_epoch} steps per epoch"
    lines = [f"data: {_samples(data.samples)}, {epoch}"]
    for shape, count in data.shapes[:SHOWN_SHAPES]:
        tokens = lengths.get(shape, {})
        length = f": {sum(tokens.values())} tokens ({_counted(tokens)})" if tokens else ""
        lines.append(f"bucket {_sizes(shape)}: {_samples(count)}{length}")
    if len(data.shapes) > SHOWN_SHAPES:
        lines.append(f"and {len(data.shapes) - SHOWN_SHAPES} buckets more, with fewer samples")
    for need in data.caches:
        size = f", about {describe_bytes(need.bytes)}" if need.bytes else ""
        lines.append(f"cache: {need.what}: {need.files} files{size}, in {need.folder}")
    return lines


def data_json(data: DataForecast | None, lengths: Mapping[Shape, Mapping[str, int]]) -> dict[str, Any]:
    """Return the same for programs, under the key ``data``; null without data."""
    if data is None:
        return {"data": None}
    shapes = [
        {
            "target": list(target),
            "references": [list(size) for size in references],
            "samples": count,
            "tokens": dict(lengths.get((target, references), {})),
        }
        for (target, references), count in data.shapes
    ]
    caches = [
        {"what": need.what, "folder": str(need.folder), "files": need.files, "bytes": need.bytes}
        for need in data.caches
    ]
    numbers = {
        "samples": data.samples,
        "batches_per_epoch": data.batches_per_epoch,
        "batches_full": round(data.batches_full, 4),
        "steps_per_epoch": data.steps_per_epoch,
    }
    return {"data": {**numbers, "shapes": shapes, "caches": caches}}


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _sizes(shape: Shape) -> str:
    return " + ".join(f"{width}x{height}" for width, height in (shape[0], *shape[1]))


def _counted(tokens: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {group}" for group, count in tokens.items() if count)


def config_lines(model: ModelPlan, chosen: Forecast, work: ModelWork) -> dict[str, object]:
    """Return the keys of the run file that give the setting; none that already have these values."""
    mode, count = chosen.mode, len(work.blocks)
    recompute: object = "auto" if 0 < mode.kept < count else mode.kept == 0
    wanted: dict[str, object] = {"base_model_precision": mode.precision, "gradient_checkpointing": recompute}
    written = model.config.model_dump(mode="json")
    if mode.compiled and written["dynamo_backend"] == "no":
        wanted["dynamo_backend"] = "auto"
    if written["attention_mechanism"] not in ("auto", mode.attention):
        wanted["attention_mechanism"] = "auto"
    return {key: value for key, value in wanted.items() if written[key] != value}


def _cells(name: str, one: Forecast | None, model: ModelPlan, shape: LargestBatch, work: ModelWork) -> tuple[str, ...]:
    if one is None:
        return (name, f"{model.config.base_model_precision}: not on this card", *[""] * 5, "no")
    numbers = _numbers(one, model, shape, work)
    assert numbers is not None, "there is a forecast"
    compiled = "" if one.mode.compiled else ", not compiled"
    hours = "?" if numbers["hours"] is None else "<0.1" if numbers["hours"] < 0.05 else f"{numbers['hours']:.1f}"
    return (
        name,
        f"{one.mode.precision}{compiled}",
        f"{numbers['recomputing']} of {len(work.blocks)}",
        f"{numbers['peak_gib']:.1f}",
        f"{available(one.card) / GIB:.1f}",
        f"{numbers['seconds_per_step']:.2f}",
        hours,
        "yes" if one.fits else "no",
    )


def _numbers(one: Forecast | None, model: ModelPlan, shape: LargestBatch, work: ModelWork) -> dict[str, Any] | None:
    if one is None:
        return None
    seconds = one.seconds * model.config.gradient_accumulation_steps
    return {
        "base_model_precision": one.mode.precision,
        "compiled": one.mode.compiled,
        "attention": one.mode.attention,
        "recomputing": len(work.blocks) - one.mode.kept,
        "blocks": len(work.blocks),
        "peak_gib": round(one.peak / GIB, 2),
        "seconds_per_step": round(seconds, 4),
        "hours": None if shape.steps is None else round(seconds * shape.steps / 3600, 3),
        "fits": one.fits,
    }


def _model(model: ModelPlan) -> str:
    name = model.config.pretrained_model_name_or_path or model.flavour.hub_id
    denoiser = model.config.pretrained_transformer_model_name_or_path
    return f"{model.family.name} {model.flavour.name}, {name}{f' with the denoiser of {denoiser}' if denoiser else ''}"


def _assumptions(model: ModelPlan, shape: LargestBatch, work: ModelWork) -> Iterator[str]:
    sizes, tokens = _sizes((shape.target, shape.references)), _counted(work.tokens)
    samples = _samples(work.samples)
    yield f"batch: {samples} of {sizes} px ({shape.source}); {tokens} tokens"
    accumulated = model.config.gradient_accumulation_steps
    steps = "unknown, set max_train_steps for the hours" if shape.steps is None else f"{shape.steps} on one card"
    yield f"steps: {steps}" + (f", each of {accumulated} such batches" if accumulated > 1 else "")
    yield (
        "forecast: rates of data sheets times the efficiency measured on one H100; other cards are not measured. Hours "
        f"are without encoding, compiling and validation; fits means within {ROOM:.0%} of the memory"
    )


def _advice(model: ModelPlan, explained: CardForecast, work: ModelWork) -> str:
    name, chosen = explained.card.name, explained.best
    lines = config_lines(model, chosen, work)
    if not chosen.fits:
        smallest = f"{chosen.mode.precision} with all blocks recomputing takes {chosen.peak / GIB:.1f} GiB"
        less = "lora_rank" if not model.adapter.trains_base else "set model_type to lora"
        return f"{name}: nothing fits: {smallest}; lower resolution, train_batch_size or {less}"
    if not lines:
        return f"{name}: the config already has the best setting"
    return f"{name}: write into the run file\n{_as_written(lines)}"


def _as_written(lines: Mapping[str, object]) -> str:
    return "\n".join(f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in lines.items())
