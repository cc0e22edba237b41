"""Decides whether the steps of a run are recorded as CUDA graphs."""

from __future__ import annotations

from difftrain.errors import ConfigError
from difftrain.steps.recorded_steps import RecordedSteps
from difftrain.steps.training_state import TrainingState
from difftrain.types import Reporter


def record_steps(state: TrainingState, reporter: Reporter) -> None:
    """Let the coming steps be recorded, if the config wants it; to be called once the model is fitted to the device.

    Raises:
        ConfigError: If the config insists on what is not possible.
    """
    wanted = state.plan.config.cuda_graphs
    if wanted is False:
        return
    obstacle = _obstacle(state)
    if obstacle is None:
        state.recorded = RecordedSteps(state.trained, reporter.say)
    elif wanted is True:
        raise ConfigError(f'cuda_graphs true: {obstacle}\nhint: set cuda_graphs to "auto" or false')


def _obstacle(state: TrainingState) -> str | None:
    if state.accelerator.device.type != "cuda":
        return f"they exist only for GPUs, and the run is on the {state.accelerator.device.type.upper()}"
    if state.accelerator.num_processes > 1:
        return f"steps of several processes are not recorded, and this run has {state.accelerator.num_processes}"
    if not state.compiled:
        return "only compiled models are recorded, and this one is not compiled"
    plan = state.plan
    trained = "model_type" if plan.adapter.trains_base else "lora_type"
    for kind, part in (("model family", plan.family), (trained, plan.adapter), ("loss_type", plan.loss)):
        if not part.replayable:
            return f"{kind} {part.name!r} does not declare that its operations can be replayed"
    return None
