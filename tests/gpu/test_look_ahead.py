"""Preparing the next step's batch does not wait for the GPU: then it would only be done later."""

from types import SimpleNamespace

import pytest
import torch

from difftrain import FlowMatching
from difftrain.data.streaming.rounds import Position
from difftrain.data.streaming.stream import MicroBatch
from difftrain.steps import step
from difftrain.steps.look_ahead import LookAhead
from difftrain.steps.noise_levels import SigmoidSampler
from difftrain.types import Batch
from difftrain_flux.family import FluxFamily
from difftrain_flux_kontext.flavour import Kontext


@pytest.mark.parametrize("mode", ["constant", "random-range"])
def test_nothing_that_is_prepared_waits_for_the_gpu(mode):
    device = torch.device("cuda")
    denoiser = torch.nn.Linear(1, 1)
    denoiser.config = SimpleNamespace(guidance_embeds=True)
    plan = SimpleNamespace(
        family=FluxFamily(flux_guidance_mode=mode), flavour=Kontext(), timestep_sampler=SigmoidSampler(),
        config=SimpleNamespace(seed=1),
    )  # fmt: skip
    state = SimpleNamespace(
        plan=plan, accelerator=SimpleNamespace(device=device, process_index=0), compute_dtype=torch.bfloat16, step=0,
        noise_process=FlowMatching(), bare_denoiser=denoiser, ahead=LookAhead(), recorded=object(), total_steps=5,
    )  # fmt: skip
    text = {
        "prompt_embeds": torch.randn(1, 16, 32).pin_memory(),
        "pooled_prompt_embeds": torch.randn(1, 8).pin_memory(),
    }
    batch = Batch(
        latents=torch.randn(1, 16, 64, 64).pin_memory(), references=[torch.randn(1, 16, 64, 64).pin_memory()], text=text
    )
    micro = MicroBatch(batch=batch, weight=1.0, position=Position(), ends_step=True)
    step._look_ahead(state, iter([micro]))  # the first call sets up what later ones use
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step._look_ahead(state, iter([micro]))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    given = state.ahead.given_for(micro)
    assert given.model_input.tokens.shape == (1, 2 * 32 * 32, 64)
    assert given.model_input.tokens.device.type == "cuda"
