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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from difftrain.contracts import Adapter, ModelFamily, ModelFlavour
from difftrain.types import Batch, ModelOutline, ModelWork, Size, Work

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "alias", "detach"}
"""Operations that give the device nothing to do; views are told by their schema."""
_IN_FLOAT32 = {"layer_norm", "group_norm", "softmax", "log_softmax", "pow", "exp", "rsqrt", "norm", "cumsum"}
_IN_COMPUTE_DTYPE = {"linear", "matmul", "bmm", "baddbmm", "addmm", "conv1d", "conv2d", "conv3d"}
"""What autocast does on GPUs; torch has no autocast for the meta device.

Source: torch's documentation of automatic mixed precision, "CUDA Ops that can autocast to float16" and "to float32".
"""


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
    adapter.attach(denoiser, family.adapter_targets(denoiser), adapter_dtype)
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
    from difftrain.types import NoisyBatch

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
        self.counts: dict[str, float] = {name: 0 for name in Work.__annotations__}

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
        with saved_tensors_hooks(self._keep, lambda kept: kept), _Operations(self):
            with _AsOnGpu(self, self._dtype):
                yield

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in self._seen:
            self._seen[storage] = tensor
            self.tally.add(kept_bytes=tensor.untyped_storage().nbytes())
        return tensor

    def is_converted(self, weight: object) -> bool:
        return id(weight) in self._converted


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _AsOnGpu(TorchFunctionMode):
    """Number formats of autocast, the fused kernels of GPUs, and the products with frozen weights."""

    def __init__(self, counting: _Counting, dtype: torch.dtype) -> None:
        super().__init__()
        self._counting, self._dtype = counting, dtype

    def __torch_function__(
        self, function: Any, types: Any, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        name, named = getattr(function, "__name__", ""), dict(named or {})
        if name == "scaled_dot_product_attention":
            return self._attention(*(_cast_to(part, self._dtype) for part in given[:3]), **_qkv(named, self._dtype))
        if name == "rms_norm":
            return self._rms_norm(given[0])
        if name == "linear":
            return self._linear(function, given, named)
        if name in _IN_FLOAT32 or name in _IN_COMPUTE_DTYPE:
            dtype = torch.float32 if name in _IN_FLOAT32 else self._dtype
            given = [_cast_to(part, dtype) for part in given]
            named = {key: _cast_to(part, dtype) for key, part in named.items()}
        return function(*given, **named)

    def _linear(self, function: Any, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        names = ("input", "weight", "bias")
        found = dict(zip(names, given, strict=False)) | named
        rows, weight = found["input"], found["weight"]
        output = function(*(_cast_to(found.get(name), self._dtype) for name in names))
        if self._counting.is_converted(weight):
            flops = 2.0 * rows.numel() * weight.shape[0]
            size = output.element_size() * (rows.numel() + output.numel() + weight.numel())
            if found.get("bias") is not None:
                size += output.element_size() * weight.shape[0]
            self._counting.tally.add(
                linear_flops=flops,
                other_flops=-flops,  # the operation below counts it as any other
                other_bytes=-size,
                linear_weights=weight.numel(),
                linear_rows=rows.numel() + output.numel(),
            )
        return output

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **_others: Any) -> Tensor:
        output: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
        self._counting.tally.add(
            attention_flops=4.0 * query.numel() * key.shape[-2],
            attention_bytes=output.nbytes + _log_sum_bytes(query),
            operations=1,
        )
        return output


    def _rms_norm(self, rows: Tensor) -> Tensor:
        output: Tensor = _RmsNorm.apply(rows)  # type: ignore[no-untyped-call]
        self._counting.tally.add(moved_bytes=rows.nbytes + output.nbytes, operations=1)
        return output


def _qkv(named: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: _cast_to(named[name], dtype) for name in ("query", "key", "value") if name in named}


def _cast_to(value: Any, dtype: torch.dtype) -> Any:
    wrong = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype
    return value.to(dtype) if wrong else value


def _log_sum_bytes(query: Tensor) -> int:
    return 4 * query[..., 0].numel()


class _Attention(torch.autograd.Function):
    """An attention kernel, which keeps its inputs, its output and a log-sum for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sum)
        return output

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> None:
        raise NotImplementedError("a forecast runs no backward pass")


class _RmsNorm(torch.autograd.Function):
    """A kernel that keeps its input and a number for each row; off GPUs torch takes it apart, and keeps more."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows, rows.new_empty(rows.shape[:-1], dtype=torch.float32))
        return torch.empty_like(rows)

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> None:
        raise NotImplementedError("a forecast runs no backward pass")


class _Operations(TorchDispatchMode):
    """Counts the operations that reach the device."""

    def __init__(self, counting: _Counting) -> None:
        super().__init__()
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
