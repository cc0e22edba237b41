"""One row of `step.py`: whole optimizer steps of FLUX.1 Kontext at full size with random weights. Prints one JSON line.

usage: python benchmarks/one_step.py '{"pixels": 1024, "options": {"base_model_precision": "fp8-matmul"}}'

Keys of the row: pixels (edge of target and references), references (1), batch (1), steps (8), cap_gib (none), stock
(false: true times stock diffusers, peft and optimum-quanto instead), options (run options of difftrain).

The step is the trainer's own (`take_step`) after the trainer's own preparation (`load_state`, `fit_to_device`). Only
data and weights are made up: the weights come tensor by tensor, so what they need on the host is seen too.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import count
from types import SimpleNamespace

import torch
from accelerate import init_empty_weights
from load_model import peak_host_gib
from rich.console import Console
from torch import Tensor, nn

from difftrain.config.problems import Problems
from difftrain.data.streaming.rounds import Position
from difftrain.data.streaming.stream import MicroBatch
from difftrain.machine.processes import start_accelerator
from difftrain.output.console import ConsoleReporter
from difftrain.planning.model_plan import Chooser, plan_model
from difftrain.steps.step import take_step
from difftrain.steps.training_state import TrainingState
from difftrain.training.assemble import load_state
from difftrain.training.fitting.fit_to_device import fit_to_device
from difftrain.training.fitting.record_steps import record_steps
from difftrain.types import Batch, ModelLocation
from difftrain_flux.family import FluxFamily
from difftrain_flux.transformer.attention import use_fast_rotation
from difftrain_flux.transformer.last_block import use_last_block

TEXT_TOKENS = 512
FLOP_PER_TOKEN = 57 * 12 * 3072**2 * 4
"""Of the linear layers: 12 * 3072^2 weights per block and token, a product and a sum each, forward and backward."""
ATTENTION = 57 * 3072 * 4 * 3.5
"""FLOP per pair of tokens: scores and values, 2.5 times as much backward as forward."""


class RandomFlux(FluxFamily):
    """FLUX.1 with the published sizes and random weights, made one by one on the host."""

    def empty_denoiser(self, location: ModelLocation) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        with init_empty_weights():
            transformer = FluxTransformer2DModel(guidance_embeds=True)
        use_fast_rotation(transformer)
        if self.flux_cut_last_block:
            use_last_block(transformer)
        return transformer

    def denoiser_weights(self, location: ModelLocation) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        some = torch.randn(1 << 20, generator=generator).mul_(0.02).bfloat16()
        for name, tensor in self.empty_denoiser(location).state_dict().items():
            repeats = -(-tensor.numel() // some.numel())
            yield name, some.repeat(repeats)[: tensor.numel()].view(tensor.shape)


def batch_of(row: dict[str, object], device: torch.device) -> Batch:
    """Random latents, references and embeddings, [B, 16, h, w] each but the text."""
    side, count = int(row["pixels"]) // 8, int(row["batch"])
    torch.manual_seed(0)
    return Batch(
        latents=torch.randn(count, 16, side, side, device=device),
        references=[torch.randn(count, 16, side, side, device=device) for _ in range(int(row["references"]))],
        text={
            "prompt_embeds": torch.randn(count, TEXT_TOKENS, 4096, device=device),
            "pooled_prompt_embeds": torch.randn(count, 768, device=device),
        },
        keys=tuple(map(str, range(count))),
    )


def ready(
    row: dict[str, object],
    *,
    family: type[FluxFamily] = RandomFlux,
    make_batch: Callable[[dict[str, object], torch.device], Batch] = batch_of,
) -> tuple[TrainingState, Batch]:
    """The state of a run before its first step, and the batch that it was fitted to the device with.

    Args:
        row: See the module; ``learning_rate`` (1e-4) may stand there too.
        family: Gives the weights.
        make_batch: Makes the run's largest batch.
    """
    steps = 10_000  # long enough for what only pays in a long run
    flags = {"model_family": "flux", "model_flavour": "kontext", "max_train_steps": str(steps), **row["options"]}
    flags["learning_rate"] = row.get("learning_rate", 1e-4)
    model = plan_model(None, {key: str(value) for key, value in flags.items()})
    chosen = Chooser(config=model.config, registry=model.plugins.registry, problems=(problems := Problems()))
    config, given = model.config, {field.name: getattr(model, field.name) for field in fields(model)}
    given["family"] = family(**model.family.model_dump())
    plan = SimpleNamespace(
        **given,
        optimizer=chosen.named("optimizer", config.optimizer),
        schedule=chosen.named("schedule", config.lr_scheduler),
        timestep_sampler=chosen.named("timestep sampler", config.timestep_sampler or "sigmoid"),
        loss=chosen.named("loss", config.loss_type),
    )
    problems.raise_all()
    accelerator, reporter = start_accelerator(), ConsoleReporter(Console(stderr=True, width=240))
    location = ModelLocation(name="random", identity="random", path=None)
    if row["cap_gib"]:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(row["cap_gib"] / total)
    state = load_state(plan, location, accelerator, reporter)
    state.total_steps = steps
    batch = make_batch(row, accelerator.device)
    only = SimpleNamespace(name=f"{row.get('pixels', 1024)} px", times=steps)
    fit_to_device(state, SimpleNamespace(shapes=[only], read=lambda _: batch), reporter)
    record_steps(state, reporter)
    state.denoiser.train()
    return state, batch


def ours(row: dict[str, object]) -> dict[str, object]:
    started = time.monotonic()
    state, batch = ready(row)
    prepared = time.monotonic() - started
    torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    micro = MicroBatch(batch=batch, weight=1 / len(batch.latents), position=Position(), ends_step=True)
    micro_batches = (replace(micro) for _ in count())
    for _ in range(int(row["steps"])):
        result = take_step(state, micro_batches)
        torch.cuda.synchronize()
        seconds.append(result.seconds)
        losses.append(round(result.loss, 4))
    tokens = state.plan.family.tokens(batch)
    return {"seconds": seconds, "prepared": prepared, "losses": losses, "tokens": sum(tokens.values())}


def stock(row: dict[str, object]) -> dict[str, object]:
    """The stock int8-quanto step, as in `bare_step.py`, without a checkpoint on disk."""
    from bare_step import stock_step

    return stock_step(int(row["steps"]), pixels=int(row["pixels"]))


def main(text: str) -> None:
    row = {"pixels": 1024, "references": 1, "batch": 1, "steps": 8, "cap_gib": None, "stock": False, "options": {}}
    row |= json.loads(text)
    host_before = peak_host_gib()
    result = stock(row) if row["stock"] else ours(row)
    seconds, tokens = statistics.median(result["seconds"][2:]), result["tokens"]
    flop = int(row["batch"]) * (FLOP_PER_TOKEN * tokens + ATTENTION * tokens**2)
    print(
        json.dumps(
            {
                "seconds": round(seconds, 4),
                "prepared": round(result["prepared"], 1),
                "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
                "host_gib": round(peak_host_gib(), 1),
                "host_gib_before": round(host_before, 1),
                "tflops": round(flop / seconds / 1e12),
                "losses": result["losses"],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
