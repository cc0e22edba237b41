"""What a run says that ends because memory ran out."""

from __future__ import annotations

from typing import Any

from difftrain.planning.combinations import can_swap, nearest
from difftrain.planning.model_plan import ModelPlan
from difftrain.planning.run_plan import RunPlan


def out_of_memory(plan: RunPlan | ModelPlan, step: int, error: Exception) -> str:
    """Return the problem, and what may help with this config.

    Args:
        step: The one that did not fit.
        error: As torch or Python raised it.
    """
    config = plan.config
    advice = [
        "" if config.gradient_checkpointing is True else "set gradient_checkpointing = true",
        _batch_size(plan),
        _precision(plan),
        "lower resolution",
        "lower lora_rank",
    ]
    reason = f": {str(error).splitlines()[0]}" if str(error) else ""
    return f"out of memory in step {step}{reason}\nhint: {', or '.join(part for part in advice if part)}"


def _batch_size(plan: RunPlan | ModelPlan) -> str:
    """Return which batch size to lower; sets may have their own."""
    usual = plan.config.train_batch_size
    sets = plan.data.target_sets if isinstance(plan, RunPlan) else ()
    own = {one.id: one.config.train_batch_size for one in sets if one.config.train_batch_size}
    largest = max(own, key=lambda name: own[name] or 0, default=None)
    if largest is not None and (own[largest] or 0) > (0 if len(own) == len(sets) else usual):
        return "" if own[largest] == 1 else f"lower train_batch_size of dataset {largest!r}, now {own[largest]}"
    return "" if usual == 1 else f"lower train_batch_size, now {usual}"


def _precision(plan: RunPlan | ModelPlan) -> str:
    if plan.quantizer is None:
        return "set base_model_precision, for example int8-matmul"
    if can_swap(plan.quantizer):
        return ""
    known: Any = plan.plugins.registry.all("quantizer")
    usable = {name: found for name, found in known.items() if plan.config.build(found).check() is None}
    names = nearest(type(plan.quantizer), usable, can_swap)
    return (
        f"set base_model_precision to {' or '.join(names)}, whose blocks can wait in the host's memory; those of "
        f"{plan.quantizer.name} cannot"
    )
