"""Counts what one forward of a denoiser does and keeps, on the meta device: shapes alone, no weight and no GPU.

The forward is the run's own: the family's input, the flavour's references, the adapter. Start with :func:`count_work`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from difftrain.contracts import Adapter, ModelFamily, ModelFlavour
from difftrain.model.counting.as_on_gpu import AsOnGpu
from difftrain.types import Batch, ModelOutline, ModelWork, NoisyBatch, Size, Work

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "alias", "detach"}
"""Operations that give the device nothing to do; views are told by their schema."""


def count_work(
    family: ModelFamily,
    flavour: ModelFlavour,
    adapter: Adapter,
    outline: ModelOutline,
    *,
    target: Size,
    references: Sequence[Size],
    samples: int,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
) -> ModelWork:
    """Return the work of one forward with gradients.

    Args:
        target: Size of the target images, in pixels.
        references: Sizes of each sample's references.
        samples: Samples of the batch.
        dtype: Number format of the forward: bfloat16, or float32 without autocast.
        adapter_dtype: Number format of the trained weights.

    Raises:
        ConfigError: If an adapter target names no module.
    """
    denoiser = outline.denoiser
    denoiser.requires_grad_(False).train()
    _cast(denoiser, dtype, family.keep_in_float32())
    converted = _convertible(denoiser, family.keep_unquantized())
    adapter.adapt(denoiser, family, adapter_dtype)
    converted = [weight for weight in converted if not weight.requires_grad]
    denoiser.to("meta")
    batch = outline.example_batch(target, references, samples).to(torch.device("meta"), dtype)
    counting = _Counting(denoiser, {id(weight) for weight in converted}, dtype)
    counting.watch(family.blocks(denoiser))
    with counting.running():
        _predict(family, flavour, denoiser, batch)
    frozen = {id(part): part for part in (*denoiser.parameters(), *denoiser.buffers()) if not part.requires_grad}
    linear_weights = sum(weight.numel() for weight in converted)
    return ModelWork(
        blocks=tuple(counting.blocks),
        rest=counting.rest.work(),
        linear_weights=linear_weights,
        other_bytes=sum(part.nbytes for part in frozen.values()) - sum(weight.nbytes for weight in converted),
        trained=sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad),
        tokens=dict(family.tokens(batch)),
        samples=samples,
    )


def _predict(family: ModelFamily, flavour: ModelFlavour, denoiser: nn.Module, batch: Batch) -> None:
    level = torch.empty(len(batch.latents), device="meta")
    latents = batch.latents.float()
    noisy = NoisyBatch(noisy=latents, sigma=level, timestep=level, target=latents)
    model_input = family.build_input(noisy, batch, denoiser)
    if batch.references:
        model_input = flavour.extend_input(family, model_input, batch)
    family.predict(denoiser, model_input).float().square().mean()


def _cast(denoiser: nn.Module, dtype: torch.dtype, in_float32: Sequence[str]) -> None:
    """Give the weights the number formats that they are loaded in."""
    for name, parameter in denoiser.named_parameters():
        names = (name, name.rpartition(".")[0])
        kept = any(fnmatch.fnmatch(one, pattern) for one in names for pattern in in_float32)
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if kept else dtype)


def _convertible(denoiser: nn.Module, kept: Sequence[str]) -> list[Tensor]:
    """Return the weights of the linear layers that a quantizer converts."""
    return [
        part.weight
        for name, part in denoiser.named_modules()
        if isinstance(part, nn.Linear) and not any(fnmatch.fnmatch(name, pattern) for pattern in kept)
    ]


class _Tally:
    """The counts of one part of the model."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = dict.fromkeys(Work.__annotations__, 0)

    def add(self, **counts: float) -> None:
        for name, count in counts.items():
            self.counts[name] += count

    def made(self, size: float) -> None:
        self.counts["largest_bytes"] = max(self.counts["largest_bytes"], size)

    def work(self) -> Work:
        return Work(**self.counts)  # type: ignore[arg-type]  # operations is a whole number


class _Counting:
    """Counts one forward, by blocks."""

    def __init__(self, denoiser: nn.Module, converted: set[int], dtype: torch.dtype) -> None:
        self.blocks: list[Work] = []
        self.rest = _Tally()
        self.tally = self.rest
        """Of the part that runs now."""
        self._converted, self._dtype = converted, dtype
        self._seen = {_storage(part): part for part in (*denoiser.parameters(), *denoiser.buffers())}
        """Storages that do not count, weights and what was already kept; held, or another would get their number."""
        self._inputs: dict[int, Tensor] = {}

    def watch(self, blocks: Iterable[nn.Module]) -> None:
        for block in blocks:
            block.forward = self._watched(block.forward)

    def _watched(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            outer, self.tally = self.tally, _Tally()
            self.tally.add(input_bytes=self._new_bytes((*given, *named.values())))
            try:
                return forward(*given, **named)
            finally:
                self.blocks.append(self.tally.work())
                self.tally = outer

        return counted

    def _new_bytes(self, inputs: Iterable[Any]) -> int:
        """Return the bytes of the tensors that no earlier block was given."""
        tensors = {_storage(part): part for part in inputs if isinstance(part, Tensor)}
        new = [part.untyped_storage().nbytes() for storage, part in tensors.items() if storage not in self._inputs]
        self._inputs |= tensors
        return sum(new)

    @contextmanager
    def running(self) -> Iterator[None]:
        with (
            saved_tensors_hooks(self._keep, lambda kept: kept),
            _Operations(self),
            AsOnGpu(self.add, self._converted, self._dtype),
        ):
            yield

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in self._seen:
            self._seen[storage] = tensor
            self.tally.add(kept_bytes=tensor.untyped_storage().nbytes())
        return tensor

    def add(self, counts: Mapping[str, float]) -> None:
        """Count for the part that runs now."""
        self.tally.add(**counts)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that reach the device."""

    def __init__(self, counting: _Counting) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counting = counting

    def __torch_dispatch__(
        self, function: Any, types: Any, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*given, **(named or {}))
        name = function.overloadpacket.__name__
        if name in _FREE or function.is_view or not isinstance(result, Tensor | tuple | list):
            return result
        inputs = [part for part in tree_leaves((given, named)) if isinstance(part, Tensor)]
        outputs = [part for part in tree_leaves(result) if isinstance(part, Tensor)]
        tally = self._counting.tally
        tally.add(operations=1)
        for output in outputs:
            tally.made(output.nbytes)
        moved = sum(part.nbytes for part in (*inputs, *outputs))
        if name in _PRODUCTS:
            tally.add(other_flops=_product_flops(name, inputs, outputs[0]), other_bytes=moved)
        else:
            tally.add(moved_bytes=moved)
        return result


def _product_flops(name: str, inputs: Sequence[Tensor], output: Tensor) -> float:
    if name == "convolution":
        return 2.0 * output.numel() * inputs[1][0].numel()
    first = inputs[1] if name in ("addmm", "baddbmm") else inputs[0]
    return 2.0 * output.numel() * first.shape[-1]
