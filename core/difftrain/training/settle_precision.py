"""Decides what ``base_model_precision: auto`` is on this machine, before weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from difftrain.contracts import Quantizer
from difftrain.machine.processes import greatest
from difftrain.model.gpu_memory import available
from difftrain.planning.auto_precision import AUTO_PRECISIONS, easy_share
from difftrain.planning.combinations import clash_of_weights, clashes_of_precision
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.encoded_form import compute_dtype
from difftrain.types import ModelLocation, Reporter

if TYPE_CHECKING:
    from accelerate import Accelerator

    from difftrain.checkpoints.resume_state import ResumeState

Plan = TypeVar("Plan", bound=ModelPlan)
LARGEST_SHARE = 0.8
"""Weights that a checkpoint was trained with unquantised stay so up to this share."""


def settle_precision(
    plan: Plan,
    location: ModelLocation,
    accelerator: Accelerator,
    saved: ResumeState | None,
    reporter: Reporter,
) -> Plan:
    """Return the plan with a named precision and its quantizer, and say why; a plan that names one is unchanged.

    Checkpoints record the name. All processes take the same.

    Args:
        saved: What the checkpoint to resume records; its precision is kept if this machine can.
    """
    if plan.config.base_model_precision != "auto":
        return plan
    every = _EveryProcess(accelerator)
    before = str(saved.config.get("base_model_precision", "auto")) if saved else "auto"
    if before != "auto" and every.agree(lambda: _works(plan, before, location, accelerator.device)):
        name, why = before, "as in the checkpoint"
    else:
        name, why = _choose(plan, location, accelerator.device, every)
        if before != "auto":
            why += f"; the checkpoint was trained with {before}, which does not work here"
    reporter.say(f"base_model_precision auto: {name}, {why}")
    config = plan.config.model_copy(update={"base_model_precision": name})
    return replace(plan, config=config, quantizer=_quantizer(plan, name))


class _EveryProcess:
    """Asks all processes of the run the same."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def agree(self, answer: Callable[[], bool]) -> bool:
        """Return whether all processes say yes."""
        return not greatest(self._accelerator, 0 if answer() else 1)

    def last(self, number: int) -> int:
        """Return the greatest of their numbers."""
        return greatest(self._accelerator, number)


def _choose(plan: ModelPlan, location: ModelLocation, device: torch.device, every: _EveryProcess) -> tuple[str, str]:
    if device.type != "cuda":
        return "no_change", "for no format is faster on the CPU" if device.type == "cpu" else f"on {device.type}"
    weights, free = _weight_bytes(plan, location), available(device)
    share = easy_share(plan.config)
    needs = f"the weights need {weights / 2**30:.1f} GiB in {compute_dtype(plan.config)}"
    part = f"{share:.0%} of the {free / 2**30:.1f} GiB that are free"
    if every.agree(lambda: weights <= share * free):
        return "no_change", f"for {needs}, at most {part}"
    usable = [index for index, name in enumerate(AUTO_PRECISIONS) if _lack(plan, name) is None]
    index = every.last(usable[0] if usable else len(AUTO_PRECISIONS))
    if index >= len(AUTO_PRECISIONS):
        return "no_change", f"for no other works here, although {needs}, more than {part}"
    major, minor = torch.cuda.get_device_capability(device)
    return (
        AUTO_PRECISIONS[index],
        f"the fastest for compute capability {major}.{minor}; {needs}, more than {part}",
    )


def _works(plan: ModelPlan, name: str, location: ModelLocation, device: torch.device) -> bool:
    if name == "no_change":
        return device.type != "cuda" or _weight_bytes(plan, location) <= LARGEST_SHARE * available(device)
    return _lack(plan, name) is None


def _lack(plan: ModelPlan, name: str) -> str | None:
    """Return why a quantizer does not work here, or not with what else the config asks for."""
    known: Any = plan.plugins.registry.all("quantizer")
    quantizer = _quantizer(plan, name)
    if quantizer is None:
        return "it is not installed"
    clashes = [*clashes_of_precision(plan.config, quantizer, known), clash_of_weights(plan.adapter, quantizer)]
    return quantizer.check() or next(filter(None, clashes), None)


def _quantizer(plan: ModelPlan, name: str) -> Quantizer | None:
    found = plan.plugins.registry.all("quantizer").get(name)
    return None if found is None else plan.config.build(found)


def _weight_bytes(plan: ModelPlan, location: ModelLocation) -> int:
    """Return the bytes of the denoiser's weights in the number format of the forward pass."""
    value_bytes = torch.empty(0, dtype=getattr(torch, compute_dtype(plan.config))).element_size()
    return sum(value_bytes * weight.numel() for weight in plan.family.empty_denoiser(location).parameters())
