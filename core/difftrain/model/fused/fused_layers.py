"""The layers of a model whose queries, keys and values come from one product, and the call of a module with them.

The module calls its layers as it always did. While it runs, the layers that it finds are wrapped: the first of a group
that is called with a tensor computes the product of all, and each gets its part as the keyword ``product``, through
whatever adapter is around it. What is remembered lives in one call only, so torch.compile can trace it, recomputed
activations too (docs/adr/008-one-product-for-queries-keys-and-values.md).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PLACES = "fused_places"
"""Attribute of a module with fused layers: the name and place of each one's :class:`FusedLinear`, by its own name."""


class FusedLinear(nn.Module):
    """The product of several linear layers with one input."""

    def __init__(self, whole: nn.Linear, sizes: Sequence[int]) -> None:
        """Take over the joined layer.

        Args:
            sizes: Output features of each of its parts, in the order of its outputs.
        """
        super().__init__()
        self.whole = whole
        self.sizes = tuple(sizes)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of each part, [..., size]: views of one tensor."""
        output: Tensor = self.whole(input)
        # not slices: autograd puts the gradients of a split together in one pass, and adds those of slices up
        parts: tuple[Tensor, ...] = torch.split(output, list(self.sizes), dim=-1)
        return parts

    def rows(self, stored: Tensor, index: int) -> Tensor:
        """Return one part's share of a tensor whose first dimension stands for the outputs, as a view."""
        total, before = sum(self.sizes), sum(self.sizes[:index])
        start, stop = (len(stored) * edge // total for edge in (before, before + self.sizes[index]))
        return stored[start:stop]


class LinearPart(nn.Linear):
    """One of the layers of a :class:`FusedLinear`, for adapters and the module that calls it.

    It has no memory of its own: ``weight`` and ``bias`` are views.
    """

    def __init__(self, fused: FusedLinear, index: int) -> None:
        nn.Module.__init__(self)
        self._fused = (fused,)  # in a tuple, which torch does not take for a submodule: the module that calls has it
        self._index = index
        self.in_features, self.out_features = fused.whole.in_features, fused.sizes[index]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # not a parameter
        """In the form in which the whole layer stores it: codes, if it is quantised."""
        return self._fused[0].rows(self._fused[0].whole.weight, self._index)

    @property
    def W_q(self) -> Tensor:
        """The codes, as :class:`~difftrain.model.precision.stored_weight.StoredWeight` has them; others have none."""
        whole: Any = self._fused[0].whole
        return self._fused[0].rows(whole.W_q, self._index)

    def dequantize(self) -> Tensor:
        """Return the weight, float32 [out_features, in_features]; only with :attr:`W_q`."""
        whole: Any = self._fused[0].whole
        return self._fused[0].rows(whole.dequantize(), self._index)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        bias = self._fused[0].whole.bias
        return None if bias is None else self._fused[0].rows(bias, self._index)

    def forward(self, input: Tensor, product: Tensor | None = None) -> Tensor:
        """Return the output, [..., out_features].

        Args:
            product: The output, if it is known already; without it the product of all parts is computed for this one.
        """
        return self._fused[0](input)[self._index] if product is None else product


class _Call:
    """A module during one call of its forward: has all that the module has, but its fused layers share products."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._inputs: dict[str, Tensor] = {}
        self._products: dict[str, tuple[Tensor, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        place = getattr(self._module, PLACES).get(name)
        return found if place is None else functools.partial(self._with_product, found, *place)

    def _with_product(self, layer: nn.Module, fused: str, index: int, input: Tensor) -> Any:
        if self._inputs.get(fused) is not input:
            self._inputs[fused] = input
            self._products[fused] = getattr(self._module, fused)(input)
        return layer(input, product=self._products[fused][index])


def sharing(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of modules like ``kind`` whose fused layers, named by :data:`PLACES`, share products.

    A class and not a forward for each module: torch.compile would compile the same code for each.
    """

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *given: Any, **named: Any) -> Any:
        return kind.forward(_Call(self), *given, **named)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def set_places(module: nn.Module, places: Mapping[str, tuple[str, int]]) -> None:
    """Tell a module of a class from :func:`sharing` about more of its layers."""
    setattr(module, PLACES, {**getattr(module, PLACES, {}), **places})
