"""One mode of `agreement.py`, in a process of its own: trains, and measures gradients of the adapter at given weights.

usage: python benchmarks/agreement_run.py ROW      ROW is JSON; agreement.py writes it

Keys of ROW: name, folder (of the results), steps, pixels, small, outliers, learning_rate, options (run options).

In `folder` it leaves NAME.json with the losses (of the steps, and `fixed_loss`: on fixed noise, before and after),
NAME.safetensors with the gradients, and NAME.adapter.safetensors with the trained adapter. Gradients are taken at three
places: at the `start`, where B is zero; with a `random` B; and at the `end` of the reference's training, whose adapter
is the path that a line of standard input gives. All modes thus measure at the same weights, on the same batches, noise
levels and noise.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from agreement_model import SmallTrainedLike, TrainedLike, make_batches, normal
from one_step import ready
from safetensors.torch import load_file, save_file
from torch import Tensor

from difftrain.data.streaming.rounds import Position
from difftrain.data.streaming.stream import MicroBatch
from difftrain.steps.step import loss_at, take_step
from difftrain.steps.training_state import TrainingState
from difftrain.types import Batch

SIGMAS = (0.3, 0.55, 0.75, 0.9)
"""Noise levels of the batches that give the gradients."""
STRENGTH = 0.02
"""Standard deviation of the random B: with rank 16 the adapter then changes outputs by some 5 %."""


def gradients(state: TrainingState, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss of all batches and its gradient, by weight; nothing of the state changes.

    Also for the loss alone: without gradients compiled blocks would be compiled once more.
    """
    state.clear_gradients()
    total = 0.0
    for number, (batch, sigma) in enumerate(zip(batches, SIGMAS, strict=True)):
        noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1000 + number))
        loss = loss_at(state, state.denoiser, batch, torch.tensor([sigma]), noise).mean() / len(batches)
        state.accelerator.backward(loss)
        total += loss.item()
    found = {}
    for name, weight in state.named_trained:
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        found[name] = gradient.detach().float().cpu()
    state.clear_gradients()
    return total, found


@torch.no_grad()
def set_weights(state: TrainingState, weights: dict[str, Tensor]) -> None:
    for name, weight in state.named_trained:
        weight.copy_(weights[name])


def with_random_b(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: STRENGTH * normal(name, weight.shape).to(weight) if ".lora_B." in name else weight
        for name, weight in weights.items()
    }


def adapter(state: TrainingState) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in state.named_trained}


def train(state: TrainingState, batches: Sequence[Batch], steps: int) -> dict[str, list[float]]:
    """Take the trainer's own steps, on one batch after the other."""
    done: dict[str, list[float]] = {"losses": [], "grad_norms": [], "seconds": []}
    for number in range(steps):
        batch = batches[number % len(batches)]
        micro = MicroBatch(batch=batch, weight=1 / len(batch.latents), position=Position(), ends_step=True)
        result = take_step(state, iter([micro]))
        done["losses"].append(result.loss)
        done["grad_norms"].append(result.grad_norm)
        done["seconds"].append(result.seconds)
    return done


def family(row: dict[str, object]) -> type[TrainedLike]:
    chosen = SmallTrainedLike if row["small"] else TrainedLike
    chosen.outliers = int(row["outliers"])
    return chosen


def main(text: str) -> None:
    row = json.loads(text)
    started, model = time.monotonic(), family(row)
    folder, name = Path(row["folder"]), row["name"]
    given = {"cap_gib": None, "pixels": row["pixels"], "learning_rate": row["learning_rate"], "options": row["options"]}
    batches: list[Batch] = []

    def make_batch(_row: dict[str, object], device: torch.device) -> Batch:
        batches.extend(make_batches(model, row["pixels"], device))
        return batches[0]

    state, _ = ready(given, family=model, make_batch=make_batch)
    prepared = time.monotonic() - started
    first, found = adapter(state), {}
    before, found["start"] = gradients(state, batches)
    done = train(state, batches, row["steps"])
    after, _ = gradients(state, batches)
    own = folder / f"{name}.adapter.safetensors"
    save_file({key: weight.cpu() for key, weight in adapter(state).items()}, own)
    set_weights(state, with_random_b(first))
    _, found["random"] = gradients(state, batches)
    place = own if row["reference"] else Path(sys.stdin.readline().strip())
    if place.is_file():
        set_weights(state, load_file(place))
        _, found["end"] = gradients(state, batches)
    tensors = {f"{where}/{key}": value for where, values in found.items() for key, value in values.items()}
    save_file(tensors, folder / f"{name}.safetensors")
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    facts = {
        "fixed_loss": [before, after],
        "compiled": state.compiled,
        "recorded": state.recorded is not None,
        "prepared": round(prepared, 1),
        "s_per_step": round(statistics.median(done["seconds"][2:] or done["seconds"]), 4),
        "peak_gib": round(peak, 1),
    }
    (folder / f"{name}.json").write_text(json.dumps({**facts, **done}))


if __name__ == "__main__":
    main(sys.argv[1])
