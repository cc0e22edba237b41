"""Forwards and backwards recorded once for each shape of batches and replayed: the GPU waits for no Python.

At 512 px an H100 computes a step of 12 billion weights in 0.15 s, and Python needs 0.25 s to launch it (docs/log.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from difftrain.errors import ModelError

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class Recording(Protocol):
    """Operations of the GPU that can be run again."""

    def replay(self) -> None: ...


Recorder = Callable[[Callable[[], Tensor], Recording | None], tuple[Recording, Tensor]]
"""Records what a function does on the GPU without running it, in the memory of an earlier recording if there is one;
gives the recording, and the tensor that each replay fills."""


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    given: Any
    """Where the recording reads its inputs."""
    weight: Tensor
    """A number on the GPU: the weight of a sample's loss in the step."""
    recording: Recording
    losses: Tensor


def cuda_graph(run: Callable[[], Tensor], earlier: Recording | None) -> tuple[Recording, Tensor]:
    """Record a CUDA graph; all share their memory, as only one is replayed at a time."""
    graph = torch.cuda.CUDAGraph()
    pool = earlier.pool() if isinstance(earlier, torch.cuda.CUDAGraph) else None
    # other threads, which read ahead, may go on using the GPU
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return graph, result


class RecordedSteps:
    """Adds the gradients of a batch to the trained weights, with a recording for each shape."""

    def __init__(self, trained: list[nn.Parameter], say: Callable[[str], None], record: Recorder = cuda_graph) -> None:
        self._trained = trained
        self.say = say
        """Tells the user."""
        self._record = record
        self._seen: set[object] = set()
        self._by_shape: dict[object, _Recorded] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        """Where all recordings add the gradients of the weights that have some."""

    def accumulate(self, loss_of: Callable[[Any], Tensor], given: Any, weight: float) -> Tensor:
        """Add the gradients of ``sum(loss_of(given)) * weight``; return the losses, [B].

        Args:
            loss_of: Must do the same operations for all inputs of one shape and look at no value on the CPU.
            given: Tensors on the GPU, in dataclasses, mappings and sequences.

        Raises:
            CannotRecord: If it cannot be recorded. Gradients of earlier calls are kept.
        """
        shape = shape_of(given)
        if shape not in self._seen:  # compiles, chooses kernels and more that cannot be recorded
            self._seen.add(shape)
            losses = loss_of(given)
            torch.autograd.backward(losses.sum() * weight)
            return losses.detach()
        recorded = self._by_shape.get(shape)
        if recorded is None:
            recorded = self._by_shape[shape] = self._recorded(loss_of, given)
        self._put_gradients_in_place()
        _copy(given, recorded.given)
        recorded.weight.fill_(weight)
        recorded.recording.replay()
        return recorded.losses.clone()

    def _put_gradients_in_place(self) -> None:
        """Let every gradient be where recordings add to it, whoever has set it to None or to another tensor."""
        for parameter, place in self._gradients.items():
            if parameter.grad is None:
                place.zero_()
            elif parameter.grad is not place:
                place.copy_(parameter.grad)
            parameter.grad = place

    def _place(self, parameter: nn.Parameter) -> Tensor:
        """Return the tensor that recordings add its gradient to; made while recording, it would lie in their memory."""
        known = self._gradients.get(parameter)
        if known is None:
            known = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        return known

    def clear_gradients(self) -> None:
        """Set the gradients to zero where they are: recordings add to these places."""
        for parameter in self._trained:
            parameter.grad = self._gradients.get(parameter)
        if self._gradients:
            torch._foreach_zero_(list(self._gradients.values()))

    def drop(self) -> bool:
        """Give the memory of all recordings back; they are made again when needed. False if there were none."""
        had_some = bool(self._by_shape)
        self._by_shape.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return had_some

    def _recorded(self, loss_of: Callable[[Any], Tensor], given: Any) -> _Recorded:
        kept = mapped(given, torch.clone)
        device = next(tensor.device for tensor in tensors_of(kept))
        weight = torch.ones((), device=device)
        before = {parameter: parameter.grad for parameter in self._trained}
        places = {parameter: self._place(parameter) for parameter in self._trained}
        touched: list[nn.Parameter] = []

        def accumulate() -> Tensor:
            held = [parameter.grad for parameter in self._trained]
            for parameter in self._trained:
                parameter.grad = None
            losses = loss_of(kept)
            torch.autograd.backward(losses.sum() * weight)
            touched[:] = [parameter for parameter in self._trained if parameter.grad is not None]
            # all at once: autograd would launch one kernel for each weight
            torch._foreach_add_([places[parameter] for parameter in touched], list(map(_gradient, touched)))
            for parameter, gradient in zip(self._trained, held, strict=True):
                parameter.grad = gradient
            return losses.detach()

        try:
            earlier = next((each.recording for each in self._by_shape.values()), None)
            recording, losses = self._record(accumulate, earlier)
        except RuntimeError as error:  # how CUDA refuses an operation, or memory that it lacks
            self.drop()
            raise CannotRecord(str(error).splitlines()[0]) from error
        finally:
            for parameter, gradient in before.items():
                parameter.grad = gradient
        # a weight that took no part keeps no gradient, not one of zeros
        self._gradients |= {parameter: places[parameter] for parameter in touched}
        return _Recorded(given=kept, weight=weight, recording=recording, losses=losses)


class CannotRecord(ModelError):
    """The operations of a step cannot be recorded."""


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy with every tensor in it changed, see :func:`shape_of` for what it may hold."""
    if isinstance(value, Tensor):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: mapped(getattr(value, field.name), change) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, Mapping):
        return {key: mapped(value[key], change) for key in _in_order(value)}
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor in a value, in a fixed order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(value, note)
    return found


def shape_of(value: Any) -> object:
    """Return what two values must share to take the same recording: all but the numbers in their tensors.

    Raises:
        CannotRecord: If the value may hide tensors in an object that is no dataclass, mapping or sequence.
    """
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), *(shape_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return tuple((key, shape_of(value[key])) for key in _in_order(value))
    if isinstance(value, list | tuple):
        return tuple(map(shape_of, value))
    if isinstance(value, PLAIN):
        return value
    raise CannotRecord(f"the model's input holds a {type(value).__name__}")


def _in_order(mapping: Mapping[Any, Any]) -> list[Any]:
    """Return the keys in a fixed order: files of tensors give them in another order each time they are read."""
    return sorted(mapping, key=str)


def _copy(source: Any, target: Any) -> None:
    for new, place in zip(tensors_of(source), tensors_of(target), strict=True):
        place.copy_(new)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "the hook is called after its gradient has arrived"
    return parameter.grad
