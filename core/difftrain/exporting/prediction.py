"""What a model predicts with the adapter as the run has it, and with a written file: the last check of an export."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from difftrain.errors import CheckpointError, ModelError
from difftrain.exporting.adapter_source import AdapterSource
from difftrain.exporting.compare_changes import tolerance_of
from difftrain.exporting.room import Place, room_for
from difftrain.model.adapter_files.changes import Change, LowRank, bias_of
from difftrain.model.adapter_files.layer_names import LayerNames
from difftrain.model.adapter_files.read_changes import read_changes
from difftrain.model.load_denoiser import load_denoiser
from difftrain.model.shards import read_weights
from difftrain.model.tensor_file import read_tensors
from difftrain.planning.model_plan import ModelPlan
from difftrain.startup.encoded_form import compute_dtype
from difftrain.startup.find_model import find_model
from difftrain.types import Batch, Reporter

EDGE = 8
"""Edges of the images that are predicted, in multiples of the family's."""
SIGMA = 0.6


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The largest differences of two predictions, number by number."""

    rounding: float
    """Difference that the number format of the predictions explains."""
    difference: float
    effect: float
    """How much the run's adapter changes the prediction."""
    through: str
    """How the written file was loaded."""


class Predictor:
    """One fixed input, and the one model that predicts for it: adapters come and go."""

    def __init__(self, plan: ModelPlan, batch: Batch, place: Place, reporter: Reporter) -> None:
        self._plan, self._place = plan, place
        self._batch = batch.to(place.device, torch.float32)
        self._location = find_model(plan).location
        self.denoiser = load_denoiser(
            plan.family,
            self._location,
            dtype=place.dtype,
            device=place.device,
            reporter=None if place.exact else reporter,
        )

    def predict(self) -> Tensor:
        """Return the prediction of the model as it is now, as training makes it; float32 on the CPU."""
        family, flavour, batch = self._plan.family, self._plan.flavour, self._batch
        noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
        process = family.noise_process(self._location)
        level = torch.full((1,), SIGMA, device=self._place.device)
        noisy = process.add_noise(batch.latents, level, noise.to(self._place.device))
        given = family.build_input(noisy, batch, self.denoiser)
        if batch.references:
            given = flavour.extend_input(family, given, batch)
        low = not self._place.exact
        with torch.no_grad(), torch.autocast(self._place.device.type, self._place.dtype, enabled=low):
            return family.predict(self.denoiser, given).float().cpu()

    def rounding(self, prediction: Tensor) -> float:
        """Return the difference that a prediction's number format explains."""
        return 0.0 if self._place.exact else tolerance_of(self._place.dtype) * float(prediction.abs().max())


def open_predictor(plan: ModelPlan, reporter: Reporter, *, models: int = 1) -> Predictor | str:
    """Load the model for comparing; return why not if there is no room for it, or it is not on this machine.

    Args:
        models: How many sets of weights are in memory at once.
    """
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
    place = room_for(numbers, getattr(torch, compute_dtype(plan.config)), models=models)
    if isinstance(place, str):
        return place
    if not place.exact:
        reporter.say(
            f"verify: the model has {numbers / 1e9:.1f} G weights; loading them once, {place.in_words(numbers)} "
            "(--no_verify leaves this out)"
        )
    edge = EDGE * plan.family.pixel_multiple
    references = [(edge, edge)] if plan.flavour.max_references else []
    try:
        return Predictor(plan, _filled(outline.example_batch((edge, edge), references, 1)), place, reporter)
    except ModelError as error:
        return str(error).partition("\n")[0]


def compare_predictions(
    source: AdapterSource, written: Path, layout: str, predictor: Predictor, reporter: Reporter
) -> Compared:
    """Predict with the adapter as it was trained, or as the source's file has it, and with the written file.

    Afterwards the model may have the written file's adapter.
    """
    plan, names = source.plan, LayerNames(source.family, linear_names(predictor.denoiser))
    assert plan is not None, "a predictor needs it"
    with reporter.phase("predict with the adapter and with the file", 3) as phase:
        base = predictor.predict()
        phase.advance()
        expected = predict_expected(source, predictor)
        phase.advance()
        if layout == "diffusers":
            through = f"{_load_in_pipeline(plan, predictor.denoiser, written)}.load_lora_weights"
            found = predictor.predict()
        else:
            through = "its names mapped back onto the model"
            with changed(predictor.denoiser, read_changes(written, names).changes):
                found = predictor.predict()
        phase.advance()
    return Compared(
        rounding=predictor.rounding(expected),
        difference=float((found - expected).abs().max()),
        effect=float((expected - base).abs().max()),
        through=through,
    )


def predict_expected(source: AdapterSource, predictor: Predictor) -> Tensor:
    """Return the prediction with the adapter as it was trained, or as the source has it."""
    plan, denoiser = source.plan, predictor.denoiser
    assert plan is not None, "a predictor needs it"
    if source.whole is not None:
        with weights_of(denoiser, read_weights(source.whole)):
            return predictor.predict()
    if (trained := _trained(source, plan)) is not None:
        with unadapted_afterwards(denoiser):
            plan.adapter.adapt(denoiser, plan.family, torch.float32)
            denoiser.eval()  # new modules are in training mode, and would drop inputs
            plan.adapter.load_state(denoiser, trained)
            return predictor.predict()
    with changed(denoiser, read_changes(source.file, LayerNames(source.family, linear_names(denoiser))).changes):
        return predictor.predict()


@contextmanager
def weights_of(denoiser: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
    """Inside this context the model has other weights; its own wait beside them, so memory is needed for both."""
    own = dict(denoiser.state_dict(keep_vars=True))
    before = {name: tensor.data for name, tensor in own.items()}
    try:
        for name, tensor in weights:
            own[name].data = tensor.to(own[name])
        yield
    finally:
        for name, tensor in before.items():
            own[name].data = tensor


@contextmanager
def unadapted_afterwards(denoiser: nn.Module) -> Iterator[None]:
    """Put back every module that an adapter replaces inside this context; a second model would not fit beside it."""
    before = list(denoiser.named_modules(remove_duplicate=False))
    try:
        yield
    finally:
        for name, module in before:  # outer modules come first
            if name and denoiser.get_submodule(name) is not module:
                denoiser.set_submodule(name, module)


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
        bias, own = bias_of(change), sizes.get(f"{module}.bias")
        if bias is not None and own != tuple(bias.shape):
            raise CheckpointError(
                f"the adapter changes the bias of {module}, and the model has {'none' if own is None else list(own)} "
                "there\nhint: name the model that it was trained on"
            )


def linear_names(denoiser: nn.Module) -> list[str]:
    """Return the full names of all linear modules."""
    return [name for name, part in denoiser.named_modules() if isinstance(part, nn.Linear)]


@contextmanager
def changed(denoiser: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Inside this context linear modules act with changed weights, each made while it is called: memory for one.

    Source of the lengths: Liu et al., DoRA, arXiv:2402.09353, equation 5.
    """
    with ExitStack() as hooks:
        for name, change in changes.items():
            linear = denoiser.get_submodule(name)
            assert isinstance(linear, nn.Linear), "names of files lead to linear modules"
            hooks.callback(linear.register_forward_hook(_changed_output(change)).remove)
        yield


def _changed_output(change: Change) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def output(linear: nn.Module, given: tuple[Tensor, ...], plain: Tensor) -> Tensor:
        assert isinstance(linear, nn.Linear), "the hook is on one"
        if isinstance(change, LowRank) and change.lengths is None:
            # as an adapter does it: added to a weight in 16 bits, much of the change would be rounded away
            down, up = (part.to(plain.device, torch.float32) for part in (change.down, change.up))
            inner = nn.functional.linear(given[0].float(), down)
            return (plain + nn.functional.linear(inner, up)).to(plain.dtype)
        return nn.functional.linear(given[0], changed_weight(linear.weight, change), _changed_bias(linear, change))

    return output


def _changed_bias(linear: nn.Linear, change: Change) -> Tensor | None:
    added = bias_of(change)
    return linear.bias if added is None else (linear.bias.float() + added.to(linear.bias.device)).to(linear.bias.dtype)


def changed_weight(weight: Tensor, change: Change) -> Tensor:
    """Return a layer's weight with the change made, in the weight's dtype."""
    whole = weight.float() + change.delta().to(weight.device)
    if isinstance(change, LowRank) and change.lengths is not None:
        whole = whole * (change.lengths.float().to(weight.device) / whole.norm(dim=1))[:, None]
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
