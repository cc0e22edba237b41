"""Watches a run from inside: what is read for it, what the model gets, how the weights move.

The tests of wiring say of each option what it changes in an assembled run; what the pieces do by themselves is tested
elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from long_runs import changed

import difftrain_flux.forward as flux_forward
from conftest import run_in
from difftrain import FlowMatching
from difftrain.data.streaming.batch_reader import BatchReader
from difftrain.steps import step
from difftrain.testing import CommandResult
from difftrain.training import loop, session

assert session, "imported before anything is patched: it takes functions of other modules by their names"

SGD = '''
from typing import ClassVar

import torch

from difftrain import OptimizerFactory, hookimpl


class PlainSgd(OptimizerFactory):
    """Moves weights by learning rate times gradient, so that their movement shows both."""

    name: ClassVar[str] = "plain-sgd"

    def build(self, parameters, learning_rate):
        return torch.optim.SGD(parameters, lr=learning_rate)


@hookimpl
def difftrain_optimizers():
    return (PlainSgd,)
'''


@dataclass(repr=False)
class Fed:
    """One forward of the training."""

    visits: Sequence[Any]
    batch: Any
    """As read from the caches."""
    sigma: torch.Tensor
    noise: torch.Tensor
    noisy: Any = None
    """The :class:`difftrain.types.NoisyBatch`."""
    input: Any = None
    """Arguments of the transformer's call."""
    prediction: torch.Tensor | None = None
    training: bool | None = None
    """The model's mode."""

    @property
    def captions(self) -> list[str]:
        return [visit.caption for visit in self.visits]

    @property
    def reference_tokens(self) -> int:
        return self.input.tokens.shape[1] - self.input.target_tokens


@dataclass(repr=False)  # pytest shows fixtures of a failed test, and these hold many tensors
class Watched:
    """A run that finished."""

    folder: Path
    output: Path
    ended: CommandResult
    state: Any
    fed: list[Fed] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    """One :class:`difftrain.types.StepResult` per step."""
    weights: list[torch.Tensor] = field(default_factory=list)
    """All trained weights in one row: before the first step, and after each."""

    @property
    def sigmas(self) -> torch.Tensor:
        return torch.cat([fed.input.sigma for fed in self.fed])

    @property
    def captions(self) -> list[str]:
        return [caption for fed in self.fed for caption in fed.captions]

    @property
    def keys(self) -> list[str]:
        return [key for fed in self.fed for key in fed.batch.keys]

    @property
    def moved(self) -> list[float]:
        """Return how far the weights moved in each step."""
        return [(after - before).norm().item() for before, after in zip(self.weights, self.weights[1:], strict=False)]


@dataclass(repr=False)
class Trials:
    """Trains with one option or another changed; equal runs are done once."""

    folder: Path
    arguments: tuple[object, ...]
    done: dict[str, Watched] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "plain_sgd.py").write_text(SGD)

    def __call__(self, **options: object) -> Watched:
        key = repr(sorted(options.items()))
        if key not in self.done:
            output = self.folder / f"output-{len(self.done)}"
            given = {"output_dir": output, **options}
            self.done[key] = watch(self.folder, output, changed(self.arguments, **given))
        return self.done[key]


EDITS = {"id": "edits", "instance_data_dir": "edits", "resolution": 64}
"""The minimal entry for the folder ``edits``."""


class DataTrials(Trials):
    """Trains with one dataset list or another."""

    def with_datasets(self, *entries: dict[str, object], **options: object) -> Watched:
        text = json.dumps(entries)
        name = f"datasets-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
        (self.folder / name).write_text(text)
        return self(data_backend_config=name, **options)

    def with_edits(self, options: dict[str, object] | None = None, /, **fields: object) -> Watched:
        """Train on only the target set, with these keys in its entry."""
        return self.with_datasets({**EDITS, **fields}, **(options or {}))


def watch(folder: Path, output: Path, arguments: Sequence[object]) -> Watched:
    """Train in this process; the run must finish."""
    seen = Watched(
        folder=folder, output=output, ended=CommandResult(status=0, out="", err="", files=frozenset()), state=None
    )
    with pytest.MonkeyPatch.context() as patch:
        _watch_forwards(patch, seen)
        _watch_steps(patch, seen)
        seen.ended = run_in(folder, *arguments)
    assert seen.ended.status == 0, seen.ended.err
    return seen


def _watch_steps(patch: pytest.MonkeyPatch, seen: Watched) -> None:
    take_step = loop.take_step

    def row(run: Any) -> torch.Tensor:
        return torch.cat([weight.detach().float().flatten() for weight in run.trained])

    def watched_step(run: Any, micro_batches: Any) -> Any:
        if seen.state is None:
            seen.state = run
            seen.weights.append(row(run))
        seen.results.append(take_step(run, micro_batches))
        seen.weights.append(row(run))
        return seen.results[-1]

    patch.setattr(loop, "take_step", watched_step)


def _watch_forwards(patch: pytest.MonkeyPatch, seen: Watched) -> None:
    """Record only forwards of training, not of validations or of tests before saving."""
    read, loss_at, batch_loss = BatchReader.read, step.loss_at, step.batch_loss
    add_noise, predict = FlowMatching.add_noise, flux_forward.predict
    visits_of: dict[int, Any] = {}
    inside: list[bool] = []

    def watched_read(reader: BatchReader, visits: Any) -> Any:
        batch = read(reader, visits)
        visits_of[id(batch)] = (visits, batch)  # keep the batch, so that no other gets its id
        return batch

    def watched_batch_loss(run: Any, batch: Any, generator: Any) -> Any:
        inside.append(True)
        try:
            return batch_loss(run, batch, generator)
        finally:
            inside.pop()

    def watched_loss_at(run: Any, denoiser: Any, batch: Any, sigma: Any, noise: Any) -> Any:
        visits, _ = visits_of[id(batch)]
        seen.fed.append(Fed(visits=visits, batch=batch, sigma=sigma, noise=noise, training=denoiser.training))
        return loss_at(run, denoiser, batch, sigma, noise)

    def watched_add_noise(*arguments: Any) -> Any:
        noisy = add_noise(*arguments)
        if inside:
            seen.fed[-1].noisy = noisy
        return noisy

    def watched_predict(denoiser: Any, model_input: Any) -> Any:
        prediction = predict(denoiser, model_input)
        if inside:
            seen.fed[-1].input, seen.fed[-1].prediction = model_input, prediction.detach()
        return prediction

    patch.setattr(BatchReader, "read", watched_read)
    patch.setattr(step, "batch_loss", watched_batch_loss)
    patch.setattr(step, "loss_at", watched_loss_at)
    patch.setattr(FlowMatching, "add_noise", watched_add_noise)
    patch.setattr(flux_forward, "predict", watched_predict)
