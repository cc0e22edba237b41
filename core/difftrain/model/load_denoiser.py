"""Loads a family's denoiser tensor by tensor, each directly in its final place and format.

The host holds one tensor at a time: a model that is quantised on a GPU is never whole in host memory.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from difftrain.contracts import ModelFamily, Quantizer
from difftrain.errors import ModelError, PluginError, first_few
from difftrain.types import ModelLocation, Reporter


def load_denoiser(
    family: ModelFamily,
    location: ModelLocation,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None = None,
    quantize_on: torch.device | None = None,
    reporter: Reporter | None = None,
    on_host: Collection[int] = (),
) -> nn.Module:
    """Return the module to train, with its weights, on ``device``, frozen, in evaluation mode.

    Floating point weights become ``dtype``, except those that the family keeps in float32. The quantizer converts each
    linear layer as soon as its weights are there, except those that the family keeps unquantized.

    Args:
        quantize_on: Where layers are whole until they are converted; default: ``device``.
        on_host: Blocks whose weights stay on the CPU, by their places in the family's ``blocks()``.

    Raises:
        ModelError: If weights are missing, unexpected or of another shape, or the files cannot be read.
        PluginError: If the family leaves tensors empty that no file has.
    """
    with reporter.phase("open model") if reporter else nullcontext():
        denoiser = family.empty_denoiser(location).requires_grad_(False).eval()
        blocks = family.blocks(denoiser) if on_host else ()
        waiting = {id(part) for index in on_host for part in blocks[index].modules()}
        filling = _Filling(denoiser, family, dtype, device, quantizer, quantize_on or device, waiting)
    phase_name = f"load model, quantised to {quantizer.name}" if quantizer else "load model"
    with reporter.phase(phase_name, filling.total) if reporter else nullcontext() as phase:
        for name, tensor in family.denoiser_weights(location):
            filling.take(name, tensor)
            if phase:
                phase.advance(item=name)
    filling.check(location)
    _place_buffers(denoiser, family, device)  # small
    return denoiser.requires_grad_(False)


class _Filling:
    """An empty module while it is being loaded.

    Tied weights are one tensor with several names; any of them will do.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        family: ModelFamily,
        dtype: torch.dtype,
        device: torch.device,
        quantizer: Quantizer | None,
        quantize_on: torch.device,
        waiting: Collection[int] = (),
    ) -> None:
        self._denoiser, self._dtype, self._device = denoiser, dtype, device
        self._quantizer, self._quantize_on = quantizer, quantize_on
        self._on_host = {name for name, part in denoiser.named_modules() if id(part) in waiting}
        self._in_float32 = family.keep_in_float32()
        self._wanted = {
            name: tensor for name, tensor in denoiser.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)
        }
        self._alike: dict[int, list[str]] = defaultdict(list)
        """Names of each tensor."""
        for name, tensor in self._wanted.items():
            self._alike[id(tensor)].append(name)
        self._missing = {names[0]: names for names in self._alike.values()}
        self._incomplete = self._to_convert(family) if quantizer else {}
        """For each layer to convert, by name, its tensors still to come."""
        self._unexpected: list[str] = []
        self._misshapen: list[str] = []

    @property
    def total(self) -> int:
        return len(self._alike)

    def take(self, name: str, tensor: Tensor) -> None:
        """Put one tensor of the files in its place. After a problem, only check names and shapes."""
        wanted = self._wanted.get(name)
        if wanted is None:
            self._unexpected.append(name)
            return
        if wanted.shape != tensor.shape:
            self._misshapen.append(f"{name} {list(tensor.shape)}, not {list(wanted.shape)}")
        names = self._alike[id(wanted)]
        if self._missing.pop(names[0], None) is None or self._unexpected or self._misshapen:
            return
        value = self._converted(name, tensor)
        if isinstance(wanted, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        for each in names:
            owner, _, leaf = each.rpartition(".")
            setattr(self._denoiser.get_submodule(owner), leaf, value)
        for each in names:
            self._convert_if_complete(each)

    def check(self, location: ModelLocation) -> None:
        """Check that the files had exactly the module's weights.

        Raises:
            ModelError: Names the first few of each kind.
        """
        missing = list(self._missing)
        wrong = [
            f"{len(names)} {what}: {first_few(names)}"
            for what, names in (
                ("are missing", missing),
                ("have another shape", self._misshapen),
                ("do not belong to this model", self._unexpected),
            )
            if names
        ]
        if wrong:
            raise ModelError(
                f"model {location.of_denoiser.name!r}: its weights are not the {self.total} that its config describes; "
                f"{'; '.join(wrong)}\nhint: download or save the model again, config and weights together"
            )

    def _converted(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy in the right number format, where its layer is quantised or else where it stays."""
        dtype, owner = tensor.dtype, name.rpartition(".")[0]
        if tensor.is_floating_point():
            dtype = torch.float32 if _matches((owner, name), self._in_float32) else self._dtype
        device = self._quantize_on if owner in self._incomplete else self._place(owner)
        if device.type == "cpu":
            return tensor.to(dtype=dtype, copy=True)
        # in one call, torch would convert on the CPU, in memory that malloc does not always give back
        return tensor.to(device=device, copy=True).to(dtype)

    def _place(self, owner: str) -> torch.device:
        """Return where the weights of a module stay."""
        return torch.device("cpu") if owner in self._on_host else self._device

    def _to_convert(self, family: ModelFamily) -> dict[str, set[str]]:
        kept = family.keep_unquantized()
        linears = [
            name
            for name, part in self._denoiser.named_modules()
            if isinstance(part, nn.Linear) and not _matches((name,), kept)
        ]
        tensors: dict[str, set[str]] = defaultdict(set)
        for name in self._wanted:
            tensors[name.rpartition(".")[0]].add(name)
        return {name: tensors[name] for name in linears}

    def _convert_if_complete(self, arrived: str) -> None:
        owner = arrived.rpartition(".")[0]
        waiting = self._incomplete.get(owner)
        if waiting is None:
            return
        waiting.discard(arrived)
        if waiting:
            return
        assert self._quantizer is not None, "without one nothing is to be converted"
        del self._incomplete[owner]
        linear = self._denoiser.get_submodule(owner)
        assert isinstance(linear, nn.Linear), "only linear layers are converted"
        converted = self._quantizer.convert(owner, linear, self._quantize_on).to(self._place(owner))
        converted = converted.requires_grad_(False)
        places = [name for name, part in self._denoiser.named_modules(remove_duplicate=False) if part is linear]
        for place in places:
            self._denoiser.set_submodule(place, converted)


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    patterns = tuple(patterns)
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)


def _place_buffers(denoiser: nn.Module, family: ModelFamily, device: torch.device) -> None:
    """Move buffers that no file has, tables that the module computes itself, to the device unchanged."""
    empty = [name for name, tensor in denoiser.named_buffers() if tensor.is_meta]
    if empty:
        raise PluginError(
            f"model family {family.name!r}: empty_denoiser() leaves {len(empty)} buffers without values that no weight "
            f"file has: {first_few(empty)}\nhint: create buffers on the CPU, as accelerate's init_empty_weights() does"
        )
    for name, tensor in list(denoiser.named_buffers(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        setattr(denoiser.get_submodule(owner), leaf, tensor.to(device))
