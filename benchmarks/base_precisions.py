"""Shows what one adapter predicts over the base weights in other number formats than it was trained on.

usage: python benchmarks/base_precisions.py [--precisions NAME ...] [--steps 60] [--json FILE]

Two adapters are trained on FLUX.1 Kontext with random weights (`agreement_model.py`), one over bf16 and one over
int8-quanto. Each then predicts four fixed inputs over every base that this machine can run. Printed, beside its
predictions over the base that it was trained on:

- prediction: root mean square of the difference relative to that of the prediction, and the cosine of both
- effect: the same for what the adapter adds, its prediction less that of the same base without it
- size: how large the effect is, as a share of the effect over the base that it was trained on

Both numbers of the prediction also hold how far the bases are apart without an adapter. `--small` is a small model,
for a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from agreement import runnable
from agreement_model import SmallTrainedLike, TrainedLike, make_batches
from agreement_run import SIGMAS, adapter, gradients, set_weights, train
from one_step import ready
from torch import Tensor

from difftrain.steps.step import input_of, predict
from difftrain.steps.training_state import TrainingState
from difftrain.types import Batch

PRECISIONS = (
    "no_change", "int8-quanto", "int8-torchao", "int8-matmul", "fp8-quanto", "fp8-matmul", "nf4-bnb", "int4-quanto",
)  # fmt: skip
TRAINED_ON = ("no_change", "int8-quanto")
EXACT = {"mixed_precision": "bf16", "dynamo_backend": "no", "attention_mechanism": "flash"}


class Bases:
    """Loads the model in one precision after the other, and trains adapters on it."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._family: type[TrainedLike] = SmallTrainedLike if asked.small else TrainedLike
        self._batches: list[Batch] = []

    def load(self, precision: str) -> TrainingState:
        options = {**EXACT, "base_model_precision": precision, "gradient_checkpointing": "true"}
        options |= {"lora_rank": str(self._asked.rank)}
        row = {"cap_gib": None, "pixels": self._asked.pixels, "learning_rate": self._asked.learning_rate}
        state, _ = ready(row | {"options": options}, family=self._family, make_batch=self._first_batch)
        return state

    def _first_batch(self, _row: object, device: torch.device) -> Batch:
        self._batches = self._batches or make_batches(self._family, self._asked.pixels, device)
        return self._batches[0]

    def train(self, state: TrainingState) -> tuple[dict[str, Tensor], list[float]]:
        """Return the trained adapter, and the loss on fixed noise before and after."""
        before, _ = gradients(state, self._batches)
        train(state, self._batches, self._asked.steps)
        after, _ = gradients(state, self._batches)
        return adapter(state), [before, after]

    @torch.no_grad()
    def predictions(self, state: TrainingState) -> Tensor:
        """Return the predictions of all fixed inputs in one row, float32 on the CPU."""
        state.denoiser.eval()
        found = []
        for number, (batch, sigma) in enumerate(zip(self._batches, SIGMAS, strict=True)):
            noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1000 + number))
            level = torch.full((len(batch.latents),), sigma, device=batch.latents.device)
            noisy = state.noise_process.add_noise(batch.latents, level, noise.to(batch.latents.device))
            with state.autocast():
                found.append(predict(state, state.bare_denoiser, input_of(state, noisy, batch)).flatten())
        return torch.cat(found).float().cpu()

    def with_and_without(self, state: TrainingState, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        set_weights(state, dict(weights))
        with state.plan.adapter.at_strength(state.bare_denoiser, 0):
            without = self.predictions(state)
        return self.predictions(state), without


def compared(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Return the relative difference of two rows, their cosine, and the size of the first as a share of the second."""
    size = wanted.norm()
    return {
        "difference": float((found - wanted).norm() / size),
        "cosine": float(found @ wanted / (found.norm() * size)),
        "size": float(found.norm() / size),
    }


def measure(asked: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Return the figures by adapter, named by its base, and by the base that it is used on."""
    names = runnable({name: {} if name == "no_change" else {"base_model_precision": name} for name in asked.precisions})
    trained_on = [name for name in TRAINED_ON if name in names]
    bases, adapters, rows = Bases(asked), {}, {}
    loaded = {name: bases.load(name) for name in trained_on}  # both at once: they need not be loaded again
    for name, state in loaded.items():
        adapters[name], losses = bases.train(state)
        rows[name] = {"fixed_loss": losses, "bases": {}}
    predicted: dict[str, dict[str, tuple[Tensor, Tensor]]] = {name: {} for name in trained_on}
    for base in [*trained_on, *(name for name in names if name not in trained_on)]:
        state = loaded.pop(base) if base in loaded else bases.load(base)
        for name, weights in adapters.items():
            predicted[name][base] = bases.with_and_without(state, weights)
        del state
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    for name, found in predicted.items():
        wanted, bare = found[name]
        rows[name]["effect"] = float((wanted - bare).norm() / wanted.norm())
        for base in names:
            own, own_bare = found[base]
            effect = compared(own - own_bare, wanted - bare)
            rows[name]["bases"][base] = {"prediction": compared(own, wanted), "effect": effect}
    return rows


def print_tables(rows: Mapping[str, Mapping[str, object]]) -> None:
    for name, row in rows.items():
        print(
            f"\ntrained on {name}, loss on fixed noise {row['fixed_loss'][0]:.4f} to {row['fixed_loss'][1]:.4f}; "
            f"its effect is {row['effect']:.1%} of the prediction\n"
        )
        print("| used on | prediction differs | cosine | effect differs | cosine | size |")
        print("|" + "---|" * 6)
        for base, found in row["bases"].items():
            prediction, effect = found["prediction"], found["effect"]
            print(
                f"| {base} | {prediction['difference']:.2%} | {prediction['cosine']:.5f} "
                f"| {effect['difference']:.2%} | {effect['cosine']:.5f} | {effect['size']:.3f} |"
            )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="NAME")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=512, help="edge of target and reference")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--small", action="store_true", help="a small model, for a CPU")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(given: Sequence[str] | None = None) -> None:
    asked = parsed(given)
    rows = measure(asked)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    print_tables(rows)


if __name__ == "__main__":
    main()
