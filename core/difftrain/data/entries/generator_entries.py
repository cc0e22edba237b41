"""Plans the generators of one target set: ``conditioning: [{"type": ..., ...}]``. No IO."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from difftrain.config.dataset_list import placeholders
from difftrain.config.messages import shown
from difftrain.config.options import Options
from difftrain.config.problems import Problems
from difftrain.config.schema import DatasetConfig, RunConfig
from difftrain.config.section import parse_options
from difftrain.config.user_values import plain_key
from difftrain.contracts import ConditioningGenerator, Pairing
from difftrain.data.entries.data_plan import GeneratorPlan
from difftrain.errors import PluginError
from difftrain.plugins.registry import Registry

DEFAULT_PAIRING = "reference_strict"
"""How a reference follows its target image if both come from one entry that does not say."""


class GeneratorEntry(Options):
    """The options of a block in addition to the generator's own parameters."""

    type: str
    """Name of the generator."""
    captions: tuple[str, ...] | None = None
    """One text or a list, of which one is drawn per visit; null uses the target set's captions."""
    conditioning_type: str = DEFAULT_PAIRING
    """How the made image follows its target."""
    instance_data_dir: Path | None = None
    """Folder of made images; default: made in the run's cache_dir."""
    generate: Literal["startup", "ondemand"] = "startup"
    """Make and store all images at start-up, or make each when it is needed and store nothing."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the generator's random draws."""

    @field_validator("captions", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        return tuple(value) or None if isinstance(value, list) else value


def plan_generators(
    config: RunConfig, dataset: DatasetConfig, registry: Registry, problems: Problems
) -> tuple[GeneratorPlan, ...]:
    """Return one plan per block; blocks with a problem are left out."""
    plans = []
    used: Counter[str] = Counter()
    for position, block in enumerate(dataset.conditioning, 1):
        if "type" not in map(plain_key, block):
            problems.add(
                f"dataset {dataset.id!r}: conditioning block {position} has no type\n"
                'hint: name a generator, such as {"type": "superresolution"}'
            )
            continue
        name = str(block.get("type"))
        used[name] += 1
        number = f"-{used[name]}" if used[name] > 1 else ""
        plan = _plan_one(config, dataset.id, f"{name}{number}", block, registry, problems)
        if plan is not None:
            plans.append(plan)
    return tuple(plans)


def _plan_one(
    config: RunConfig, dataset_id: str, name: str, block: dict[str, Any], registry: Registry, problems: Problems
) -> GeneratorPlan | None:
    plan_id = f"{dataset_id}/{name}"
    prefix = f"dataset {dataset_id!r}: conditioning {block.get('type')!r}: "
    values = _flattened(block, prefix, problems)
    own = {key: value for key, value in values.items() if key in GeneratorEntry.model_fields}
    known = placeholders(config, dataset_id)
    entry = parse_options(GeneratorEntry, own, prefix=prefix, problems=problems, known=known)
    if entry is None:
        return None
    generator_type = _find(registry, "generator", entry.type, prefix, problems)
    pairing_type = _find(registry, "pairing", entry.conditioning_type, prefix, problems)
    if generator_type is None or pairing_type is None:
        return None
    rest = {key: value for key, value in values.items() if key not in own}
    of_pairing = {
        key: value
        for key, value in rest.items()
        if key in pairing_type.model_fields and key not in generator_type.model_fields
    }
    parameters = {key: value for key, value in rest.items() if key not in of_pairing}
    generator: ConditioningGenerator | None = parse_options(
        generator_type, parameters, prefix=prefix, problems=problems, known=known
    )
    pairing: Pairing | None = parse_options(pairing_type, of_pairing, prefix=prefix, problems=problems, known=known)
    if generator is None or pairing is None:
        return None
    return GeneratorPlan(
        id=plan_id,
        generator=generator,
        pairing=pairing,
        captions=entry.captions,
        folder=entry.instance_data_dir or config.cache_dir / "made" / plan_id,
        on_demand=entry.generate == "ondemand",
        seed=entry.seed,
    )


def _flattened(block: dict[str, Any], prefix: str, problems: Problems) -> dict[str, Any]:
    """Merge the parameters beside ``type`` with those inside ``params``."""
    values = {plain_key(key): value for key, value in block.items()}
    inner = values.pop("params", None) or {}
    if not isinstance(inner, dict):
        problems.add(f"{prefix}params must be an object {{...}}, got {shown(inner)}")
        return values
    for key, value in inner.items():
        plain = plain_key(key)
        if plain in values and values[plain] != value:
            problems.add(
                f"{prefix}{plain} is {shown(values[plain])} beside type and {shown(value)} inside params; keep one"
            )
        values[plain] = value
    return values


def _find(registry: Registry, kind: str, name: str, prefix: str, problems: Problems) -> type[Any] | None:
    try:
        return registry.find(kind, name)
    except PluginError as error:
        problems.add(f"{prefix}{error}")
        return None
