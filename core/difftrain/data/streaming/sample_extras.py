"""Extra tensors that the run's family and loss ask of each sample besides latents and text: weights, masks, scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from difftrain.contracts import Loss, ModelFamily
from difftrain.data.entries.data_plan import DataPlan
from difftrain.errors import DifftrainError, PluginError
from difftrain.types import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from difftrain.config.options import Options

Extras = Mapping[str, "Tensor"]


class SampleExtras:
    """Asks the family and the loss of a run, each with its options in the sample's dataset entry."""

    def __init__(self, plan: DataPlan, family: ModelFamily, loss: Loss) -> None:
        self._asked: dict[str, list[tuple[str, ModelFamily | Loss, Options]]] = {}
        for dataset in plan.target_sets:
            pairs: list[tuple[str, ModelFamily | Loss, Options | None]] = [
                (f"model family {family.name!r}", family, dataset.family_options),
                (f"loss {loss.name!r}", loss, dataset.loss_options),
            ]
            self._asked[dataset.id] = [(who, owner, own) for who, owner, own in pairs if own is not None]

    def of(self, sample: Sample) -> dict[str, Tensor]:
        """Return the tensors of one sample by name, on the CPU; floating point tensors are float32.

        Raises:
            PluginError: If the family or the loss fails or returns something else, or both use one name.
        """
        found: dict[str, Tensor] = {}
        owners: dict[str, str] = {}
        for who, owner, options in self._asked[sample.dataset_id]:
            for name, tensor in _given(who, owner, sample, options).items():
                if name in found:
                    raise PluginError(
                        f"extras of a sample are given twice: {owners[name]} and {who} both give {name!r}\n"
                        "hint: use another loss_type, or ask the author of one to rename it"
                    )
                found[name], owners[name] = tensor, who
        return found

    def check(self, samples: Iterable[Sample]) -> None:
        """Try the first of each dataset's samples, so that a broken plugin is found before anything is encoded.

        Raises:
            PluginError: As :meth:`of` does.
        """
        tried: set[str] = set()
        for sample in samples:
            if sample.dataset_id not in tried:
                tried.add(sample.dataset_id)
                self.of(sample)

    def identity(self, sample: Sample) -> str:
        """Return a text that identifies the extras of a sample by content; empty if there are none."""
        parts = [
            f"{name}{tuple(tensor.shape)}{tensor.dtype}{hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}"
            for name, tensor in sorted(self.of(sample).items())
        ]
        return "|".join(parts)


def stack_extras(extras: Sequence[Extras], keys: Sequence[str]) -> dict[str, Tensor]:
    """Return the stacked extras of a batch, [B, ...] each.

    Args:
        extras: The extras of each sample.
        keys: Names of the samples for messages.

    Raises:
        PluginError: If samples have extras of other names, shapes or number formats.
    """
    import torch

    facts = [{name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in one.items()} for one in extras]
    for key, one in zip(keys, facts, strict=True):
        if one != facts[0]:
            raise PluginError(
                f"extras of {keys[0]} and {key} cannot be stacked into one batch: {facts[0]} and {one}\n"
                "hint: extras of samples that share a bucket must have equal names, shapes and number formats"
            )
    return {name: torch.stack([one[name] for one in extras]) for name in facts[0]}


def _given(who: str, owner: ModelFamily | Loss, sample: Sample, options: Options) -> dict[str, Tensor]:
    """Call one owner's ``extras()`` and turn its failures into plugin errors."""
    import torch

    where = f"{sample.dataset_id}/{sample.target.record.key}"
    try:
        given: object = owner.extras(sample, options)
    except DifftrainError:
        raise
    except Exception as error:  # third-party plugin code may raise anything
        raise PluginError(f"{who}: extras() failed on {where}: {type(error).__name__}: {error}") from error
    if not isinstance(given, Mapping):
        raise PluginError(f"{who}: extras() must return a mapping of tensors by name, got {type(given).__name__}")
    for name, tensor in given.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
            raise PluginError(
                f"{who}: extras() must return tensors by name, got {type(tensor).__name__} for {name!r} of {where}"
            )
    tensors = {name: tensor.detach().cpu() for name, tensor in given.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
