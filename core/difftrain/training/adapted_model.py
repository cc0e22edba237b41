"""Loads the model with its adapter, as a plan names them: for training, and for commands that only load a model."""

from __future__ import annotations

import torch
from torch import nn

from difftrain.model.attention import choose_attention
from difftrain.model.load_denoiser import load_denoiser
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.encoded_form import compute_dtype
from difftrain.types import ModelLocation, Reporter


def load_adapted(
    plan: ModelPlan, location: ModelLocation, *, device: torch.device, adapter_dtype: torch.dtype, reporter: Reporter
) -> nn.Module:
    """Return the frozen denoiser on the device, with trainable weights added as they are before the first step.

    Their initial values follow from the config's seed. :meth:`Adapter.load_state` replaces them, for
    example with those that :meth:`Adapter.read` finds in a file.

    Raises:
        DifftrainError: If the weights do not fit, or cannot be read.
    """
    choose_attention(plan.config.attention_mechanism, device.type)
    dtype: torch.dtype = getattr(torch, compute_dtype(plan.config))
    denoiser = load_denoiser(
        plan.family, location, dtype=dtype, device=device, quantizer=plan.quantizer, reporter=reporter
    )
    targets = plan.family.adapter_targets(denoiser)
    torch.manual_seed(plan.config.seed)
    plan.adapter.attach(denoiser, targets, adapter_dtype)
    count = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
    reporter.say(f"adapter {plan.adapter.name}: {len(targets)} modules, {count:,} trained weights")
    return denoiser
