"""Loads the model with its adapter, as a plan names them: for training, and for commands that only load a model."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from difftrain.contracts import Adapter
from difftrain.model.attention.choose_kernel import choose_attention
from difftrain.model.block_swapping import SwappedBlocks
from difftrain.model.fused.fuse_linears import fuse_linears
from difftrain.model.load_denoiser import load_denoiser
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.encoded_form import compute_dtype
from difftrain.training.fitting.choose_swapping import swapped_at_first
from difftrain.types import ModelLocation, Reporter


def load_adapted(
    plan: ModelPlan,
    location: ModelLocation,
    *,
    device: torch.device,
    adapter_dtype: torch.dtype,
    reporter: Reporter,
    swapped: SwappedBlocks | None = None,
    to_load: bool = False,
) -> nn.Module:
    """Return the frozen denoiser on the device, with trainable weights added as they are before the first step.

    Their initial values follow from the config's seed. :meth:`Adapter.load_state` replaces them, for
    example with those that :meth:`Adapter.read` finds in a file.

    Args:
        swapped: Where blocks are swapped if the config asks for it or the model is larger than the device; None loads
            all blocks to the device.
        to_load: :meth:`Adapter.load_state` follows, so nothing is computed that it replaces.

    Raises:
        DifftrainError: If the weights do not fit, or cannot be read.
    """
    assert plan.config.base_model_precision != "auto", "settle_precision() decides before weights are loaded"
    choose_attention(plan.config.attention_mechanism, device)
    dtype: torch.dtype = adapter_dtype if plan.adapter.trains_base else getattr(torch, compute_dtype(plan.config))
    waiting = swapped_at_first(plan, plan.family.empty_denoiser(location), device) if swapped else []
    denoiser = load_denoiser(
        plan.family,
        location,
        dtype=dtype,
        device=device,
        quantizer=plan.quantizer,
        quantize_on=torch.device("cpu") if plan.config.quantize_via == "cpu" else device,
        reporter=reporter,
        on_host=waiting,
    )
    if plan.config.fuse_qkv_projections:
        reporter.say(_fuse(plan, denoiser))
    torch.manual_seed(plan.config.seed)
    adapted = plan.adapter.adapt(denoiser, plan.family, adapter_dtype)
    _begin(plan.adapter, denoiser, list(adapted), reporter, to_load=to_load)
    if swapped:
        swapped.add(plan.family.blocks(denoiser), waiting)
    count = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
    kinds = Counter(kind for kind in adapted.values() if kind)
    listed = f": {', '.join(f'{number} of {kind}' for kind, number in kinds.items())}" if kinds else ""
    what = "model_type" if plan.adapter.trains_base else "adapter"
    reporter.say(f"{what} {plan.adapter.name}: {len(adapted)} modules{listed}, {count:,} trained weights")
    return denoiser


def _begin(adapter: Adapter, denoiser: nn.Module, adapted: list[str], reporter: Reporter, *, to_load: bool) -> None:
    """Compute what the adapter begins with, unless it is read from a checkpoint."""
    if not adapter.beginning:
        return
    if to_load:
        reporter.say(f"{adapter.beginning}: read from the checkpoint")
        return
    with reporter.phase(adapter.beginning, len(adapted)) as phase:
        for module in adapter.begin(denoiser, adapted):
            phase.advance(item=module)


def _fuse(plan: ModelPlan, denoiser: nn.Module) -> str:
    """Fuse the layers that share their input, and return what to say about it."""
    if plan.quantizer is not None and not plan.quantizer.can_fuse:  # only base_model_precision auto comes here with it
        return f"note: weights of {plan.quantizer.name} cannot be fused; fuse_qkv_projections has no effect"
    groups = plan.family.shared_input_linears(denoiser)
    count = fuse_linears(denoiser, groups)
    return f"fuse_qkv_projections: {count} of {len(groups)} groups of layers run as one product each"
