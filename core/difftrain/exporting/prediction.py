"""What a model predicts with the adapter as the run has it, and with a written file: the last check of an export."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from difftrain.errors import CheckpointError, ModelError
from difftrain.exporting.adapter_source import AdapterSource
from difftrain.model.adapter_files.changes import Change, LowRank
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.read_changes import read_changes
from difftrain.model.load_denoiser import load_denoiser
from difftrain.model.shards import read_weights
from difftrain.model.tensor_file import read_tensors
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.find_model import find_model
from difftrain.types import Batch

LARGEST = 1_000_000_000
"""Numbers of a model up to which predictions are compared: in float32 on the CPU, twice in memory."""
EDGE = 8
"""Edges of the images that are predicted, in multiples of the family's."""
SIGMA = 0.6


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The largest differences of two predictions, number by number."""

    difference: float
    effect: float
    """How much the run's adapter changes the prediction."""
    through: str
    """How the written file was loaded."""


class Predictor:
    """One fixed input, and the model that predicts for it."""

    def __init__(self, plan: ModelPlan, batch: Batch) -> None:
        self._plan = plan
        self._batch = batch
        self.denoiser = load_denoiser(
            plan.family, find_model(plan).location, dtype=torch.float32, device=torch.device("cpu")
        )

    def predict(self, denoiser: nn.Module) -> Tensor:
        """Return the prediction of the model, or of a copy with an adapter, as training makes it."""
        family, flavour, batch = self._plan.family, self._plan.flavour, self._batch
        noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
        process = family.noise_process(find_model(self._plan).location)
        noisy = process.add_noise(batch.latents, torch.full((1,), SIGMA), noise)
        given = family.build_input(noisy, batch, denoiser)
        if batch.references:
            given = flavour.extend_input(family, given, batch)
        with torch.no_grad():
            return family.predict(denoiser, given)


def open_predictor(plan: ModelPlan) -> Predictor | str:
    """Load the model for comparing; return why not if it is too large, or not on this machine."""
    model, denoiser = (
        plan.config.pretrained_model_name_or_path,
        plan.config.pretrained_transformer_model_name_or_path,
    )
    outline = (
        plan.family.outline(model, plan.flavour)
        if denoiser is None
        else plan.family.outline_with_denoiser(model, denoiser, plan.flavour)
    )
    if outline is None:
        return "the family has no example input"
    numbers = sum(parameter.numel() for parameter in outline.denoiser.parameters())
    if numbers > LARGEST:
        return f"the model has {numbers / 1e9:.1f} G weights"
    edge = EDGE * plan.family.pixel_multiple
    references = [(edge, edge)] if plan.flavour.max_references else []
    try:
        return Predictor(plan, _filled(outline.example_batch((edge, edge), references, 1)))
    except ModelError as error:
        return str(error).partition("\n")[0]


def compare_predictions(source: AdapterSource, written: Path, layout: str, predictor: Predictor) -> Compared:
    """Predict with the adapter as it was trained, or as the source's file has it, and with the written file."""
    plan, names = source.plan, LayerNames(source.family, linear_names(predictor.denoiser))
    assert plan is not None, "a predictor needs it"
    base, expected = predict_expected(source, predictor)
    other = copy.deepcopy(predictor.denoiser)
    if layout == "diffusers":
        through = f"{_load_in_pipeline(plan, other, written)}.load_lora_weights"
        found = predictor.predict(other)
    else:
        through = "its names mapped back onto the model"
        with changed(other, read_changes(written, names).changes):
            found = predictor.predict(other)
    return Compared(
        difference=float((found - expected).abs().max()), effect=float((expected - base).abs().max()), through=through
    )


def predict_expected(source: AdapterSource, predictor: Predictor) -> tuple[Tensor, Tensor]:
    """Return the prediction of the model alone, and with the adapter as it was trained, or as the source has it."""
    plan = source.plan
    assert plan is not None, "a predictor needs it"
    base = predictor.predict(predictor.denoiser)
    own = copy.deepcopy(predictor.denoiser)
    if source.whole is not None:
        own.load_state_dict({name: tensor.float() for name, tensor in read_weights(source.whole)})
        return base, predictor.predict(own)
    if (trained := _trained(source, plan)) is not None:
        plan.adapter.adapt(own, plan.family, torch.float32)
        plan.adapter.load_state(own, trained)
        return base, predictor.predict(own)
    with changed(own, read_changes(source.file, LayerNames(source.family, linear_names(own))).changes):
        return base, predictor.predict(own)


def _trained(source: AdapterSource, plan: ModelPlan) -> dict[str, Tensor] | None:
    """Return the weights as they were trained; None if there are none, or the file has others.

    An optimizer may save other weights than it trains on, such as averages.
    """
    if source.trained is None:
        return None
    trained, _ = read_tensors(source.trained)
    with TemporaryDirectory() as folder:
        plan.adapter.write(trained, Path(folder), plan.family.lora_prefix)
        again, _ = read_tensors(Path(folder) / source.file.name)
    saved, _ = read_tensors(source.file)
    same = again.keys() == saved.keys() and all(torch.equal(again[name], saved[name]) for name in again)
    return trained if same else None


def check_fits(changes: Mapping[str, Change], denoiser: nn.Module) -> None:
    """Check that a model has the layers that an adapter changes.

    Raises:
        CheckpointError: Names the first layer that it does not have, or that has another size.
    """
    sizes = {name: tuple(weight.shape) for name, weight in denoiser.named_parameters()}
    for module, change in changes.items():
        has = sizes.get(f"{module}.weight")
        if has != change.shape:
            raise CheckpointError(
                f"the adapter changes {module} {list(change.shape)}, and the model has "
                f"{'no such layer' if has is None else list(has)}\nhint: name the model that it was trained on"
            )


def linear_names(denoiser: nn.Module) -> list[str]:
    """Return the full names of all linear modules."""
    return [name for name, part in denoiser.named_modules() if isinstance(part, nn.Linear)]


@contextmanager
def changed(denoiser: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Inside this context the weights of linear modules are changed.

    Source of the lengths: Liu et al., DoRA, arXiv:2402.09353, equation 5.
    """
    before: dict[nn.Linear, Tensor] = {}
    try:
        for name, change in changes.items():
            linear = denoiser.get_submodule(name)
            assert isinstance(linear, nn.Linear), "names of files lead to linear modules"
            before[linear] = linear.weight.data
            linear.weight.data = changed_weight(linear.weight.data, change)
        yield
    finally:
        for linear, weight in before.items():
            linear.weight.data = weight


def changed_weight(weight: Tensor, change: Change) -> Tensor:
    """Return a layer's weight with the change made, in the weight's dtype."""
    whole = weight.float() + change.delta()
    if isinstance(change, LowRank) and change.lengths is not None:
        whole = whole * (change.lengths.float() / whole.norm(dim=1))[:, None]
    return whole.to(weight.dtype)


def _load_in_pipeline(plan: ModelPlan, denoiser: nn.Module, written: Path) -> str:
    """Load a file with the stock pipeline, which has no other part; return the name of diffusers' class."""
    loading = plan.flavour.pipeline_class()
    parts = dict.fromkeys(inspect.signature(loading).parameters)
    pipeline = loading(**{**parts, plan.family.lora_prefix: denoiser})
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it warns of parts that are not there
    pipeline.load_lora_weights(str(written.parent), weight_name=written.name)
    stock = (base.__name__ for base in loading.__mro__ if base.__module__.startswith("diffusers."))
    return next(stock, loading.__name__)


def _filled(batch: Batch) -> Batch:
    """Return a batch of random numbers with the shapes of one on the meta device."""
    generator = torch.Generator().manual_seed(0)

    def numbers(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    return Batch(
        latents=numbers(batch.latents),
        references=[numbers(reference) for reference in batch.references],
        text={name: numbers(tensor) for name, tensor in batch.text.items()},
    )
