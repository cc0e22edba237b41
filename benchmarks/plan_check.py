"""The forecast of `difftrain plan` beside steps that were measured. Needs no GPU and no model on disk.

usage: python benchmarks/plan_check.py

The measurements are in `measured_steps.json`; add a row there when `step.py` measures another. A row may name pixels
(1024), references (1), batch (1), target, the value of flux_lora_target (all), and weight_bytes, if weights are kept
twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from difftrain.planning.forecast.cards import GIB, find_card
from difftrain.planning.forecast.choose import forecast
from difftrain.planning.forecast.memory import TrainedBytes
from difftrain.planning.forecast.modes import NO_QUANTIZER, mode_of
from difftrain.plugins.discovery import load_plugins
from difftrain.types import ModelWork

MEASURED = Path(__file__).with_name("measured_steps.json")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One measurement and its forecast."""

    card: str
    name: str
    seconds: float
    predicted_seconds: float
    gib: float
    predicted_gib: float

    @property
    def off_in_time(self) -> float:
        return self.predicted_seconds / self.seconds - 1

    @property
    def off_in_memory(self) -> float:
        return self.predicted_gib / self.gib - 1


@cache
def full_size_work(pixels: int, references: int, batch: int, target: str) -> tuple[ModelWork, TrainedBytes]:
    """Count the work of FLUX.1 Kontext at full size."""
    import torch

    from difftrain.model.counting.denoiser_work import count_work
    from difftrain.steps.optimizer_bytes import optimizer_bytes

    registry = load_plugins().registry
    family = registry.find("family", "flux")(flux_lora_target=target)
    flavour, adapter = registry.find("flavour", "kontext", family="flux")(), registry.find("adapter", "standard")()
    outline = family.outline(None, flavour)
    work = count_work(
        family,
        flavour,
        adapter,
        outline,
        target=(pixels, pixels),
        references=[(pixels, pixels)] * references,
        samples=batch,
        dtype=torch.bfloat16,
        adapter_dtype=torch.bfloat16,
    )
    state = optimizer_bytes(registry.find("optimizer", "adamw_bf16")(), torch.bfloat16)
    return work, TrainedBytes(weight=2, optimizer=state)


def compare(row: dict[str, Any]) -> Compared:
    shape = {"pixels": 1024, "references": 1, "batch": 1, "target": "all"}
    work, trained = full_size_work(**{key: row.get(key, usual) for key, usual in shape.items()})
    name = row["precision"]
    quantizer = None if name == NO_QUANTIZER else load_plugins().registry.find("quantizer", name)
    mode = mode_of(
        quantizer,
        compute="bfloat16",
        compiled=row["compiled"],
        kept=row["kept"],
        attention=row["attention"],
        recorded=row.get("recorded", False),
        weight_bytes=row.get("weight_bytes"),
    )
    assert mode is not None, f"{name} says what its weights take"
    found = forecast(work, mode, trained, find_card(row["card"]))
    assert found is not None, f"{row['card']} has the products of {name}"
    return Compared(
        card=row["card"],
        name=row["name"],
        seconds=row["seconds"],
        predicted_seconds=found.seconds,
        gib=row["peak_gib"],
        predicted_gib=found.peak / GIB,
    )


def measured_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]
    return rows


def main() -> None:
    print("| card | mode | s/step | forecast | off | GiB | forecast | off |\n|---|---|---|---|---|---|---|---|")
    for row in measured_rows():
        one = compare(row)
        print(
            f"| {one.card} | {one.name} | {one.seconds:.3f} | {one.predicted_seconds:.3f} | {one.off_in_time:+.0%} "
            f"| {one.gib:.1f} | {one.predicted_gib:.1f} | {one.off_in_memory:+.0%} |"
        )


if __name__ == "__main__":
    main()
