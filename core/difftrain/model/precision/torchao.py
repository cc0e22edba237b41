"""Frozen weights in 8 bits, quantised by torchao."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from difftrain.contracts import Quantizer
from difftrain.model.precision.optional_package import lacking

if TYPE_CHECKING:
    import torch
    from torch import nn


class _TorchAo(Quantizer):
    """Weights in 8 bits with a scale per row; products run in the activations' number format."""

    name: ClassVar[str] = ""
    can_compile: ClassVar[bool] = True
    can_fuse: ClassVar[bool] = True
    can_dequantize: ClassVar[bool] = True
    weight_bytes: ClassVar[float | None] = 1.0

    def check(self) -> str | None:
        lack = lacking("torchao", (0, 18))
        return f"{self.name} {lack}, or use {self.name.replace('torchao', 'quanto')}" if lack else None

    @abstractmethod
    def _config(self) -> object:
        """Return torchao's settings of the format."""

    @abstractmethod
    def _stored(self, module: nn.Linear) -> nn.Module:
        """Return our layer with the codes of a layer that torchao has quantised."""

    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        from torchao.quantization import quantize_

        quantised = module.to(device)
        quantize_(quantised, self._config())
        return self._stored(quantised).requires_grad_(False).train(module.training)


class TorchAoInt8(_TorchAo):
    """Weights as int8 with a scale per row, as torchao rounds them."""

    name: ClassVar[str] = "int8-torchao"

    def _config(self) -> object:
        from torchao.quantization import Int8WeightOnlyConfig

        # torchao's settings of inductor would hold for the whole process, and tune kernels for minutes
        return Int8WeightOnlyConfig(set_inductor_config=False, version=2)

    def _stored(self, module: nn.Linear) -> nn.Module:
        from difftrain.model.precision.weight_only_linear import Int8StoredLinear

        weight: Any = module.weight  # torchao's tensor
        return Int8StoredLinear(module, weight.qdata, weight.scale.float())


class TorchAoFp8(_TorchAo):
    """Weights as float8_e4m3fn with a scale per row, as torchao rounds them: less exact than int8."""

    name: ClassVar[str] = "fp8-torchao"

    def _config(self) -> object:
        from torchao.quantization import Float8WeightOnlyConfig

        return Float8WeightOnlyConfig(set_inductor_config=False, version=2)

    def _stored(self, module: nn.Linear) -> nn.Module:
        import torch

        from difftrain.model.precision.weight_only_linear import Fp8StoredLinear

        weight: Any = module.weight  # torchao's tensor
        return Fp8StoredLinear(module, weight.qdata.view(torch.int8), weight.scale.float())
