"""The facts of a run that its published files state.

A list of what may be said, and not of what must not: numbers, switches and names that a plugin or difftrain gave.
Paths, file names, dataset ids, captions, and any other text that a user wrote freely are left out; trigger words, the
hub id of the base model and the name in ``hub_model_id`` are meant to be known.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from difftrain.config.options import Options
from difftrain.config.run_options import DataOptions, ModelOptions, OptimizerOptions, TrainingOptions
from difftrain.model.flavour_match import hub_id_of, is_here

if TYPE_CHECKING:
    from difftrain.planning.run_plan import RunPlan

Value = str | int | float | bool

_NAMED = (
    "model_family", "model_flavour", "lora_type", "optimizer", "lr_scheduler", "timestep_sampler", "loss_type",
    "base_model_precision",
)  # fmt: skip
"""Options whose text must be a registered name, so that it says nothing else."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What anyone may know of a trained adapter."""

    title: str
    base_model: str
    """A hub id, or the name of a built-in model."""
    base_is_copy: bool
    """Whether the weights came from files of the user, so that ``base_model`` is only their flavour's id."""
    licence_url: str | None
    architecture: str
    """Name of the base model as the hub spells it, in lower case."""
    kind: str
    """``lora``, another ``lora_type``, or ``full``."""
    whole_model: bool = False
    """Whether the model itself was trained, and its files are a model."""
    precision: str
    """Number format of the frozen weights in training; ``no_change`` is the format of the computation."""
    computed_in: str
    """Number format of the computation, such as bf16."""
    trigger_words: tuple[str, ...]
    resolution: str
    steps: int
    batch_size: int
    """Samples of one step, over all processes."""
    samples: tuple[int, ...]
    """Number of training samples of each dataset; empty if the stream of a plugin does not count them."""
    file_note: str = ""
    """What the file holds that the settings do not say; usually nothing."""
    settings: Mapping[str, Value] = field(default_factory=dict)
    """Options of the training by key: those that were set, and those that say most."""

    @property
    def base_is_on_hub(self) -> bool:
        return "/" in self.base_model

    @property
    def quantised(self) -> bool:
        """Whether the frozen weights were rounded in training, so that the adapter fits them best."""
        return self.precision != "no_change"

    @property
    def precision_note(self) -> str:
        """A sentence on which base the adapter works best with."""
        if self.quantised:
            return f"trained on {self.precision} weights: works best on a base model in {self.precision}"
        return f"trained on unquantised weights, computed in {self.computed_in}"


def facts_of(plan: RunPlan, *, step: int, data: Mapping[str, str], processes: int) -> RunFacts:
    """Return the facts of a run at a step.

    Args:
        plan: With its precision settled.
        data: What each dataset holds, as a checkpoint records it: ``100 samples, ...``, or any text of a plugin.
        processes: How many train together.
    """
    config = plan.config
    base, is_copy = _base_model(plan)
    return RunFacts(
        title=_title(plan),
        base_model=base,
        base_is_copy=is_copy,
        licence_url=_licence_page(plan, base),
        architecture=plan.flavour.hub_id.rpartition("/")[2].lower().replace(".", "-"),
        kind={"standard": "lora"}.get(plan.adapter.name, plan.adapter.name),
        whole_model=plan.adapter.trains_base,
        precision=config.base_model_precision,
        computed_in={"no": "fp32"}.get(config.mixed_precision, config.mixed_precision),
        trigger_words=_trigger_words(plan),
        resolution=_resolution(plan),
        steps=step,
        batch_size=config.train_batch_size * config.gradient_accumulation_steps * processes,
        samples=_sample_counts(data),
        file_note=plan.adapter.file_note,
        settings=_settings(plan),
    )


def _sample_counts(data: Mapping[str, str]) -> tuple[int, ...]:
    counts = [re.match(r"(\d+) samples", facts) for facts in data.values()]
    return tuple(int(count[1]) for count in counts if count) if all(counts) else ()


def today() -> str:
    """Return the date in UTC, without the time: equal runs of a day give equal files.

    SOURCE_DATE_EPOCH sets another, as in other tools for reproducible files.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return time.strftime("%Y-%m-%d", time.gmtime(int(epoch) if epoch.isdecimal() else None))


def _title(plan: RunPlan) -> str:
    name = (plan.config.hub_model_id or "").rpartition("/")[2]
    kind = {"standard": "LoRA", "full": "fine-tune"}.get(plan.adapter.name, plan.adapter.name)
    return name or f"{plan.flavour.hub_id.rpartition('/')[2]} {kind}"


def _base_model(plan: RunPlan) -> tuple[str, bool]:
    """Return the base model's name, and whether the weights came from the user's own files.

    Those of the denoiser count, where it is named separately.
    """
    config = plan.config
    name = config.pretrained_transformer_model_name_or_path or config.pretrained_model_name_or_path
    if name is None:
        return plan.flavour.hub_id, False
    if is_here(name):
        return plan.flavour.hub_id, True
    if hub_id := hub_id_of(name):
        return hub_id, False
    # a single word is a built-in model; anything else may be a path that is gone by now
    return (name, False) if name.replace("-", "").isalnum() else (plan.flavour.hub_id, True)


def _licence_page(plan: RunPlan, base: str) -> str | None:
    """Return where the licence of the base model is; None for a built-in one."""
    if base == plan.flavour.hub_id:
        return plan.flavour.licence_url
    return f"https://huggingface.co/{base}" if "/" in base else None


def _trigger_words(plan: RunPlan) -> tuple[str, ...]:
    sets = [dataset.captions for dataset in plan.data.target_sets if not dataset.held_out]
    words = [getattr(captions, "instance_prompt", None) for captions in sets]
    return tuple(dict.fromkeys(word for word in words if isinstance(word, str) and word))


def _resolution(plan: RunPlan) -> str:
    """Return the largest training resolution as ``1024x1024``: its area, and not the shape of any image."""
    edges = [0]
    for dataset in plan.data.target_sets:
        value, unit = dataset.config.resolution, dataset.config.resolution_type
        value = plan.config.resolution if value is None else value
        unit = plan.config.resolution_type if unit is None else unit
        edges.append(round((value * 1e6) ** 0.5) if unit == "area" else round(value))
    return f"{max(edges)}x{max(edges)}"


def _settings(plan: RunPlan) -> dict[str, Value]:
    """Return options of the training whose values cannot say anything private."""
    config = plan.config
    always = {
        **({"model_type": config.model_type} if plan.adapter.trains_base else {"lora_type": config.lora_type}),
        **{key: value for key, value in _harmless(plan.adapter).items() if value},
        "optimizer": config.optimizer,
        "learning_rate": config.learning_rate,
        "lr_scheduler": config.lr_scheduler,
        "train_batch_size": config.train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "mixed_precision": config.mixed_precision,
        "base_model_precision": config.base_model_precision,
    }
    chosen = {key: getattr(config, key) for key in _NAMED if key in config.model_fields_set}
    groups = (ModelOptions, TrainingOptions, OptimizerOptions, DataOptions, type(plan.family), type(plan.flavour))
    for cls in groups:
        chosen |= {key: value for key, value in _harmless(config, cls).items() if key in config.model_fields_set}
    return {key: value for key, value in {**always, **chosen}.items() if isinstance(value, Value)}


def _harmless(options: Options, cls: type[Options] | None = None) -> dict[str, Value]:
    """Return values that are numbers, switches, or words that the option itself lists; no text of the user's own."""
    found = {}
    for key, described in (cls or type(options)).model_fields.items():
        value = getattr(options, key, None)
        if isinstance(value, bool | int | float) or (isinstance(value, str) and value in _words(described.annotation)):
            found[key] = value
    return found


def _words(annotation: object) -> set[object]:
    """Return the words that an annotation lists: those of Literal, alone or in a union."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {word for part in get_args(annotation) for word in _words(part)}
