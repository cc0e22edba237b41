"""GELU's tanh form through a sigmoid, in compiled blocks: Triton's tanh takes longer than reading and writing the rows.

``tanh(u) = 2 sigmoid(2u) - 1``, so ``x / 2 (1 + tanh(u)) = x sigmoid(2u)``; the same function, computed in float32 as
torch's own kernel does. Source of the tanh form: Hendrycks and Gimpel, arXiv:1606.08415, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn

SLOPE = 2 * (2 / torch.pi) ** 0.5
CUBIC = 0.044715


def use_compiled_gelu(block: nn.Module) -> None:
    """Let the block's GELU layers of the tanh form compute it so wherever they are compiled."""
    for module in block.modules():
        if getattr(module, "approximate", None) == "tanh":
            module.__class__ = _REPLACEMENTS.get(type(module), type(module))


class CompiledGelu(nn.GELU):
    """The layer of torch; compiled, another form of the same function."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input) if torch.compiler.is_compiling() else super().forward(input)


class CompiledProjection(GELU):  # type: ignore[misc, unused-ignore]
    """The layer of diffusers, which projects before."""

    def gelu(self, gate: Tensor) -> Tensor:
        output: Tensor = gelu(gate) if torch.compiler.is_compiling() else super().gelu(gate)
        return output


_REPLACEMENTS: Mapping[type[nn.Module], type[nn.Module]] = {nn.GELU: CompiledGelu, GELU: CompiledProjection}


def gelu(x: Tensor) -> Tensor:
    """Return ``x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))``, elementwise, in the dtype of ``x``."""
    wide = x.float()
    return (wide * torch.sigmoid(SLOPE * (wide + CUBIC * wide * wide * wide))).to(x.dtype)
