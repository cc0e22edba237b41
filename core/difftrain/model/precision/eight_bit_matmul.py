"""Frozen weights in 8 bits whose products run in 8 bits too, forward and backward; the adapter stays in bfloat16."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from difftrain.contracts import Quantizer

if TYPE_CHECKING:
    import torch
    from torch import nn

CODES_AT_ONCE = 16
"""Features of a layer must be a multiple of this for the 8-bit kernels."""


class _EightBitMatmul(Quantizer):
    can_compile: ClassVar[bool] = True
    can_fuse: ClassVar[bool] = True
    can_dequantize: ClassVar[bool] = True
    weight_bytes: ClassVar[float | None] = 1.0
    otherwise: ClassVar[str]
    """The precision to use on older cards."""

    keep_transposed_weights: bool = False
    """With fp8-matmul and int8-matmul: also keep each weight transposed, as the backward pass multiplies with it. Steps
    are a few percent shorter, and the weights take twice the memory."""

    def check(self) -> str | None:
        import torch

        if not torch.cuda.is_available():
            return None  # computed on the CPU with the same results, but slowly
        capability = torch.cuda.get_device_capability()
        if capability >= self.needs_capability:
            return None
        wanted, there = (".".join(map(str, pair)) for pair in (self.needs_capability, capability))
        return (
            f"{self.name} needs a card of compute capability {wanted} or higher, and {torch.cuda.get_device_name()} "
            f"has {there}; use {self.otherwise}"
        )

    @abstractmethod
    def layer_class(self, module: nn.Linear) -> type[nn.Module]:
        """Return the class of the layer that takes a linear one's place."""

    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        if module.in_features % CODES_AT_ONCE or module.out_features % CODES_AT_ONCE:
            return module  # few and small in every model: no kernel takes them
        layer = self.layer_class(module)(module.to(device))
        return layer.requires_grad_(False).train(module.training)

    def before_training(self, denoiser: nn.Module, device: torch.device) -> None:
        from difftrain.model.precision.eight_bit_linear import EightBitLinear

        if not self.keep_transposed_weights:
            return
        layers = [layer for layer in denoiser.modules() if isinstance(layer, EightBitLinear)]
        for layer in layers:
            if layer.weight.device.type == device.type:  # others wait in the host's memory
                layer.keep_transposed()

    def bytes_of_weight(self) -> float | None:
        return 2.0 if self.keep_transposed_weights else self.weight_bytes


class Fp8Matmul(_EightBitMatmul):
    """Weights and products as float8_e4m3fn: the fastest; for compute capability 8.9 and above (RTX 4090, H100).

    Each row of the activations, of the gradients and of the weights has its own scale.
    """

    name: ClassVar[str] = "fp8-matmul"
    products: ClassVar[Literal["full", "fp8", "int8"]] = "fp8"
    needs_capability: ClassVar[tuple[int, int]] = (8, 9)
    otherwise: ClassVar[str] = "int8-matmul"

    def layer_class(self, module: nn.Linear) -> type[nn.Module]:
        from difftrain.model.precision.eight_bit_linear import Fp8Linear

        return Fp8Linear


class Int8Matmul(_EightBitMatmul):
    """Weights and products as int8: three times as exact as fp8; for compute capability 8.0 and above (RTX 3090)."""

    name: ClassVar[str] = "int8-matmul"
    products: ClassVar[Literal["full", "fp8", "int8"]] = "int8"
    needs_capability: ClassVar[tuple[int, int]] = (8, 0)
    otherwise: ClassVar[str] = "int8-quanto"

    int8_rotation: bool = False
    """With int8-matmul: rotate inputs and weights by a Hadamard matrix, which spreads outliers over 128 features."""

    def layer_class(self, module: nn.Linear) -> type[nn.Module]:
        from difftrain.model.precision import eight_bit_linear as layers

        return layers.RotatedInt8Linear if self.int8_rotation else layers.Int8Linear
