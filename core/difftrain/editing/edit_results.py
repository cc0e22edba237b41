"""What an edit leaves beside its results: the sheet of all, and metrics.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from difftrain.data.caching.tensor_cache import write_atomically
from difftrain.editing.measure_edits import described, means
from difftrain.editing.plan_edit import EditPlan, Variant
from difftrain.errors import printable
from difftrain.validation.drawn_files import save_png
from difftrain.validation.requests import guidance_of, seed_of
from difftrain.validation.scenes import Scene
from difftrain.validation.sheet import CELL, Shown, TableRow, draw_table

SHEET_FILE = "sheet.png"
METRICS_FILE = "metrics.json"
MOST_ROWS = 60
"""Of the sheet; the results themselves are all written."""


@dataclass(frozen=True, kw_only=True)
class DrawnEdit:
    """One result of the grid."""

    scene: int
    """Place in :attr:`EditPlan.scenes`, and below in ``variants``."""
    variant: int
    seed_number: int
    """Counts from 1."""
    path: Path
    small: Image.Image
    """For the sheet."""
    metrics: dict[str, float]
    """Empty without a target."""


@dataclass(kw_only=True)
class Results:
    """The results drawn so far, and what they are compared with."""

    plan: EditPlan
    precision: str
    """``base_model_precision`` that they are drawn with."""
    drawn: list[DrawnEdit] = field(default_factory=list)
    copies: dict[int, dict[str, float]] = field(default_factory=dict)
    """The metrics of the input itself by scene: the score of doing nothing."""
    inputs: dict[int, tuple[Image.Image, ...]] = field(default_factory=dict)
    """References by scene, for the sheet."""
    targets: dict[int, Image.Image] = field(default_factory=dict)

    def write(self) -> None:
        """Write the sheet and the metrics.

        Raises:
            DataError: If one cannot be written.
        """
        save_png(draw_table(self._labels(), list(self._rows()), self._title()), self.plan.output / SHEET_FILE)
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        write_atomically(self.plan.output / METRICS_FILE, f"{text}\n".encode())

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the mean metrics by column, the input's first; empty without targets."""
        columns = {"input": means(self.copies.values())} if self.copies else {}
        for place, variant in enumerate(self.plan.variants):
            columns[variant.label] = means(one.metrics for one in self.drawn if one.variant == place and one.metrics)
        return {name: found for name, found in columns.items() if found}

    def as_json(self) -> dict[str, Any]:
        """Return everything for other programs; paths of results are relative to the folder."""
        plan, config = self.plan, self.plan.model.config
        guidance, real = guidance_of(plan.model)
        return {
            "adapter": [str(weights.path) for weights in plan.adapter.weights],
            "steps_trained": [weights.step for weights in plan.adapter.weights],
            "model": config.pretrained_model_name_or_path or plan.model.flavour.hub_id,
            "model_flavour": plan.model.flavour.name,
            "base_model_precision": self.precision,
            "trained_on_precision": plan.trained_precision,
            "mixed_precision": config.mixed_precision,
            "num_inference_steps": config.validation_num_inference_steps,
            "guidance": guidance,
            "guidance_real": real,
            "mean": self.summary(),
            "images": [self._image(place, scene) for place, scene in enumerate(plan.scenes) if place in self.inputs],
        }

    def _image(self, place: int, scene: Scene) -> dict[str, Any]:
        found: dict[str, Any] = {
            "image": scene.references[0].record.image.place,
            "prompt": scene.prompt,
            "references": [one.record.image.place for one in scene.references[1:]],
            "target": scene.target.record.image.place if scene.target else None,
            "size": list(scene.size),
        }
        if place in self.copies:
            found["input"] = self.copies[place]
        return found | {"drawn": [self._drawn(one) for one in self.drawn if one.scene == place]}

    def _drawn(self, one: DrawnEdit) -> dict[str, Any]:
        variant = self.plan.variants[one.variant]
        return {
            "file": one.path.name,
            "strength": variant.strength,
            "step": self._step(variant),
            "seed": seed_of(self.plan.model, one.seed_number),
            **one.metrics,
        }

    def _step(self, variant: Variant) -> int | None:
        return None if variant.weights is None else self.plan.adapter.weights[variant.weights].step

    def _labels(self) -> list[str]:
        count = max(len(scene.references) for scene in self.plan.scenes)
        inputs = ["input"] if count == 1 else [f"reference {number}" for number in range(1, count + 1)]
        return [*inputs, *(variant.label for variant in self.plan.variants), *(["target"] if self.targets else [])]

    def _rows(self) -> Iterator[TableRow]:
        by_place = {(one.scene, one.seed_number, one.variant): one for one in self.drawn}
        seeds = range(1, self.plan.asked.seeds + 1)
        places = [(scene, seed) for scene in sorted(self.inputs) for seed in seeds]
        for scene, seed in places[:MOST_ROWS]:
            caption = self.plan.scenes[scene].prompt or "(no instruction)"
            name = self.plan.scenes[scene].name
            notes = [described(self.copies[scene])] if scene in self.copies else []
            first, *others = self.inputs[scene]
            cells: list[Shown | None] = [Shown(image=first, note="".join(notes)), *(Shown(image=one) for one in others)]
            for variant in range(len(self.plan.variants)):
                one = by_place.get((scene, seed, variant))
                cells.append(Shown(image=one.small, note=described(one.metrics)) if one else None)
            if self.targets:
                cells.append(Shown(image=self.targets[scene]) if scene in self.targets else None)
            number = seed_of(self.plan.model, seed)
            yield TableRow(caption=f"{caption}   [{printable(name)}, seed {number}]", cells=cells)

    def _title(self) -> str:
        names = ", ".join(dict.fromkeys(weights.name for weights in self.plan.adapter.weights))
        rows = len(self.inputs) * self.plan.asked.seeds
        cut = f"; the first {MOST_ROWS} of {rows} rows" if rows > MOST_ROWS else ""
        return f"{self.plan.adapter.home.name}: {names}, on base_model_precision {self.precision}{cut}"


def for_sheet(images: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    """Return copies as small as the sheet shows them, so that a large grid needs little memory."""
    small = [image.copy() for image in images]
    for image in small:
        image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return tuple(small)
