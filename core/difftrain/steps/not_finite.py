"""Handles a loss or gradient that is NaN or infinite: reports its likely causes, or skips the update on request."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from difftrain.errors import NotFinite, first_few

if TYPE_CHECKING:
    from difftrain.steps.tally import Tally
    from difftrain.steps.training_state import TrainingState


def leave_out(state: TrainingState, tally: Tally, loss: float, grad_norm: float) -> None:
    """Count an update that must not be applied; the caller has applied nothing.

    Raises:
        NotFinite: With ``on_nan: stop``, or when too many updates in a row were skipped.
    """
    config = state.plan.config
    if config.on_nan == "skip":
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row < config.on_nan_limit:
            return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {grad_norm}"
    after = (
        f"; {state.skipped_in_a_row} updates in a row were skipped, on_nan_limit allows fewer than "
        f"{config.on_nan_limit}"
        if config.on_nan == "skip"
        else ""
    )
    raise NotFinite(f"step {state.step + 1}: {what}, with {_samples(tally)}{after}\nhint: {_causes(state)}")


def _samples(tally: Tally) -> str:
    """Return the samples of the step over all processes; if some have a loss that is not finite, only those."""
    from accelerate.utils import gather_object

    every = gather_object([(tally.not_finite(), tally.keys)])
    broken = [key for some, _ in every for key in some]
    keys = broken or [key for _, some in every for key in some]
    return f"sample{'' if len(keys) == 1 else 's'} {first_few(keys, 8)}"


def _causes(state: TrainingState) -> str:
    config = state.plan.config
    causes = [f"learning_rate {config.learning_rate:g} too high"]
    if config.max_grad_norm == 0:
        causes.append("max_grad_norm 0, so nothing limits the gradients")
    causes.append("an image or caption that the model cannot handle")
    if config.mixed_precision != "no":
        causes.append("the range of 16-bit numbers (mixed_precision no is float32)")
    advice = "" if config.on_nan == "skip" else "; on_nan = skip skips such updates and continues"
    return f"likely causes: {', '.join(causes)}{advice}"
