"""Blocks whose frozen weights wait in the host's memory and come to the device when they are needed.

The copy of the next one runs beside the computation of the blocks before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

ALIGNMENT = 256
"""Bytes; kernels want the first number of a tensor at a multiple of 16 or more."""


class SwappedBlocks:
    """Brings the frozen weights of some blocks to the device for their forward and backward, and drops them after."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = _stream(device)
        self._weights: dict[int, _Weights] = {}
        self._in_backward: set[int] = set()
        """Blocks whose backward has begun, and whose weights must stay."""

    def __contains__(self, index: object) -> bool:
        return index in self._weights

    def __bool__(self) -> bool:
        return True  # also before the first block

    @property
    def indices(self) -> tuple[int, ...]:
        """The blocks that are swapped, by their places in the model."""
        return tuple(sorted(self._weights))

    @property
    def host_bytes(self) -> int:
        return sum(weights.bytes for weights in self._weights.values())

    def add(self, blocks: Sequence[nn.Module], indices: Iterable[int]) -> None:
        """Take the frozen weights of more blocks off the device, wherever they are; trained ones go to the device.

        Args:
            blocks: All blocks of the model, in the order in which they run.
            indices: Those to swap from now on.
        """
        for index in sorted(set(indices) - set(self._weights)):
            self._weights[index] = _Weights(blocks[index], self._device)
            blocks[index].register_forward_pre_hook(partial(self._before, index), with_kwargs=True, prepend=True)
            blocks[index].register_forward_hook(partial(self._after, index), with_kwargs=True, always_call=True)

    def _before(self, index: int, _block: nn.Module, given: Any, named: Any) -> tuple[Any, Any]:
        if index not in self._in_backward:
            self._leave_backward()  # of the step before: nothing tells when its last block is done
        self._need(index, then=self._neighbour(index, 1))
        if torch.is_grad_enabled():
            given, named = tree_map(partial(_marked, partial(self._end_backward, index)), (given, named))
        return given, named

    def _after(self, index: int, _block: nn.Module, _given: Any, _named: Any, outputs: Any) -> Any:
        if index in self._in_backward:
            return outputs  # recomputed: its backward follows
        comes_back = any(isinstance(part, Tensor) and part.requires_grad for part in _parts(outputs))
        if not (comes_back and index == self.indices[-1]):  # the last one's backward is next
            self._weights[index].drop()
        return tree_map(partial(_marked, partial(self._begin_backward, index)), outputs)

    def _begin_backward(self, index: int) -> None:
        self._leave_backward()
        self._in_backward.add(index)
        self._need(index, then=self._neighbour(index, -1))

    def _end_backward(self, index: int) -> None:
        self._in_backward.discard(index)
        self._weights[index].drop()

    def _leave_backward(self) -> None:
        """Drop the weights of blocks whose inputs need no gradient: nothing else tells that they are done."""
        for index in tuple(self._in_backward):
            self._end_backward(index)

    def _need(self, index: int, *, then: int | None) -> None:
        self._weights[index].bring(self._copies)
        self._weights[index].wait()
        if then is not None:
            self._weights[then].bring(self._copies)

    def _neighbour(self, index: int, way: int) -> int | None:
        place = self.indices.index(index) + way
        return self.indices[place] if 0 <= place < len(self.indices) else None


class _Weights:
    """The frozen tensors of one block, end to end in one piece of memory on the host and one on the device."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        tensors = list(_frozen(block))
        places = []
        self.bytes = 0
        for tensor in tensors:
            places.append(self.bytes)
            self.bytes += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        self._host = torch.empty(self.bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._there = torch.empty(self.bytes, dtype=torch.uint8, device=device)
        self._arrived: torch.cuda.Event | None = None
        """Still to be waited for."""
        for tensor, place in zip(tensors, places, strict=True):
            _view(self._host, tensor, place).copy_(tensor)
            tensor.data = _view(self._there, tensor, place)
        for parameter in block.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(device)
        self.drop()

    @property
    def is_there(self) -> bool:
        return self._there.untyped_storage().size() > 0

    def bring(self, copies: torch.cuda.Stream | None) -> None:
        """Begin to copy, unless the weights are there; the memory is the current stream's, so no other must free it."""
        if self.is_there:
            return
        self._there.untyped_storage().resize_(self.bytes)
        if copies is None:
            self._there.copy_(self._host)
            return
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            self._there.copy_(self._host, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> None:
        """Let the current stream wait for the copy."""
        if self._arrived is not None:
            torch.cuda.current_stream().wait_event(self._arrived)
            self._arrived = None

    def drop(self) -> None:
        """Free the device's memory; every tensor that refers to it, also those that autograd saved, gets it back when
        the weights return."""
        self.wait()
        self._there.untyped_storage().resize_(0)


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def spread(count: int, places: Sequence[int]) -> list[int]:
    """Return ``count`` of the places at even distances, so that each copy has the most time."""
    count = min(count, len(places))
    return [places[(2 * number + 1) * len(places) // (2 * count)] for number in range(count)]


def memory_of(block: nn.Module) -> int:
    """Return the bytes of a block's frozen weights, wherever they are."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _frozen(block))


def _frozen(block: nn.Module) -> Iterator[Tensor]:
    yield from (parameter for parameter in block.parameters() if not parameter.requires_grad)
    yield from block.buffers()


def _view(memory: Tensor, tensor: Tensor, place: int) -> Tensor:
    length = tensor.numel() * tensor.element_size()
    return memory[place : place + length].view(tensor.dtype).view(tensor.shape)


def _parts(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


class _Mark(torch.autograd.Function):
    """The same tensor; calls back when its gradient passes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, call: Any) -> Tensor:
        ctx.call = call
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.call()
        return gradient, None


def _marked(call: Any, value: Any) -> Any:
    if isinstance(value, Tensor) and value.requires_grad:
        return _Mark.apply(value, call)  # type: ignore[no-untyped-call]
    return value
