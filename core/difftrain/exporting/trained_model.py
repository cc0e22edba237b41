"""A model that was trained as a whole, as the source of an export: its weights, or their difference from the base as a
LoRA. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from difftrain.errors import CheckpointError, first_few
from difftrain.exporting.adapter_source import AdapterSource
from difftrain.exporting.prediction import linear_names
from difftrain.model.adapter_files.changes import Factors
from difftrain.model.adapter_files.reduce_rank import Reduced, reduced
from difftrain.model.shards import read_weights, weight_files
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.startup.find_model import find_model
from difftrain.types import ModelLocation, Reporter


def check_same_model(source: AdapterSource, empty: nn.Module, location: ModelLocation) -> None:
    """Check that the trained weights have the names and shapes of a model's own; reads headers alone.

    Args:
        empty: The model's denoiser, without values.

    Raises:
        CheckpointError: Names a weight that only one of them has.
    """
    assert source.whole is not None, "only for models trained as a whole"
    headers = (read_header(file) for file in weight_files(source.whole))
    trained = {(name, *entry.shape) for header in headers for name, entry in header.tensors.items()}
    own = {(name, *tensor.shape) for name, tensor in empty.state_dict().items()}
    if different := sorted(own ^ trained, key=str):
        name, *shape = different[0]
        raise CheckpointError(
            f"{source.whole} is not trained from {location.name}: {len(different)} weights differ by name or shape, "
            f"among them {name} {shape}\nhint: name the model that it was trained from, with --model, --flavour and "
            "--pretrained_model_name_or_path"
        )


def trained_weights(source: AdapterSource, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """Yield every trained weight with its name, one at a time.

    Args:
        dtype: Number format to give them; None keeps theirs.

    Raises:
        CheckpointError: At one that is not finite.
    """
    assert source.whole is not None, "only for models trained as a whole"
    for name, tensor in read_weights(source.whole):
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{source.whole}: {name} has numbers that are not finite\nhint: export an earlier checkpoint"
            )
        yield name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def reduce_whole_model(source: AdapterSource, rank: int, reporter: Reporter) -> dict[str, Reduced]:
    """Return the nearest LoRA of the difference between trained and base weights, by module.

    Of other weights than those of linear layers a LoRA has nothing; what that leaves out is said.

    Raises:
        CheckpointError: If the weights are not those of the base model.
    """
    assert source.plan is not None, "the run's record names the base model"
    family, location = source.plan.family, find_model(source.plan).location
    empty = family.empty_denoiser(location)
    check_same_model(source, empty, location)
    linears = set(linear_names(empty))
    trained = dict(trained_weights(source, None))
    found: dict[str, Reduced] = {}
    others = []
    with reporter.phase("reduce to a LoRA", len(linears)) as phase:
        for name, base in family.denoiser_weights(location):
            module, _, kind = name.rpartition(".")
            after = trained[name]
            if module in linears and kind == "weight":
                found[module] = reduced(Factors(tensors={"diff": after.float() - base.float()}), rank)
                phase.advance(item=module)
            elif not torch.equal(after.float(), base.float()):
                others.append(name)
    if others:
        reporter.say(
            f"note: {len(others)} trained weights are no matrices of linear layers, and no part of a LoRA: "
            f"{first_few(others)}"
        )
    return found
