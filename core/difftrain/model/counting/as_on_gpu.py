"""The run's number formats and fused kernels on the meta device, which has neither autocast nor kernels of its own."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_IN_FLOAT32 = {"layer_norm", "group_norm", "softmax", "log_softmax", "pow", "exp", "rsqrt", "norm", "cumsum"}
_IN_COMPUTE_DTYPE = {"linear", "matmul", "bmm", "baddbmm", "addmm", "conv1d", "conv2d", "conv3d"}
"""What autocast does on GPUs; torch has no autocast for the meta device.

Source: torch's documentation of automatic mixed precision, "CUDA Ops that can autocast to float16" and "to float32".
"""


class AsOnGpu(TorchFunctionMode):
    """Number formats of autocast, the fused kernels of GPUs, and the products with frozen weights."""

    def __init__(self, add: Callable[[dict[str, float]], None], converted: Container[int], dtype: torch.dtype) -> None:
        """Count while the mode is on.

        Args:
            add: Takes counts by the names of :class:`difftrain.types.Work`.
            converted: Identities of the weights that a quantizer converts.
            dtype: Number format of products.
        """
        super().__init__()
        self._add, self._converted, self._dtype = add, converted, dtype

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
        found = {**dict(zip(names, given, strict=False)), **named}
        rows, weight = found["input"], found["weight"]
        output = function(*(_cast_to(found.get(name), self._dtype) for name in names))
        if id(weight) in self._converted:
            flops = 2.0 * rows.numel() * weight.shape[0]
            size = output.element_size() * (rows.numel() + output.numel() + weight.numel())
            if found.get("bias") is not None:
                size += output.element_size() * weight.shape[0]
            self._add(
                {
                    "linear_flops": flops,
                    "other_flops": -flops,  # the operation below counts it as any other
                    "other_bytes": -size,
                    "linear_weights": weight.numel(),
                    "linear_rows": rows.numel() + output.numel(),
                }
            )
        return output

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **_others: Any) -> Tensor:
        output: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
        self._add(
            {
                "attention_flops": 4.0 * query.numel() * key.shape[-2],
                "attention_bytes": output.nbytes + _log_sum_bytes(query),
                "operations": 1,
            }
        )
        return output

    def _rms_norm(self, rows: Tensor) -> Tensor:
        output: Tensor = _RmsNorm.apply(rows)  # type: ignore[no-untyped-call]
        self._add({"moved_bytes": rows.nbytes + output.nbytes, "operations": 1})
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
