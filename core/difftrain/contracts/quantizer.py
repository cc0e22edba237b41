"""The contract of number formats of frozen weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from difftrain.config.options import Options

if TYPE_CHECKING:
    import torch
    from torch import nn


class Quantizer(Options, ABC):
    """Stores frozen weights in fewer bits: ``base_model_precision: NAME``, ``text_encoder_1_precision: NAME``.

    Fields are run options, the same for all models of a run.
    """

    name: ClassVar[str]
    can_compile: ClassVar[bool] = False
    """Whether torch.compile takes the layers of :meth:`convert`, with and without recomputed activations."""
    can_fuse: ClassVar[bool] = False
    """Whether layers of :meth:`convert` become one with the outputs of all, exactly, if each of their parameters and
    buffers is put together along its first dimension: for ``fuse_qkv_projections``."""
    can_dequantize: ClassVar[bool] = False
    """Whether layers of :meth:`convert` have ``dequantize()``, which returns the weight, [out, in], and an attribute
    ``W_q``, by which peft knows such layers: for ``use_dora``."""
    weight_bytes: ClassVar[float | None] = None
    """Bytes of one converted weight, with its share of the scales, for `difftrain plan`; None leaves it out there."""
    products: ClassVar[Literal["full", "fp8", "int8"]] = "full"
    """Number format in which the products run; full turns the weights into that of the activations first."""
    needs_capability: ClassVar[tuple[int, int]] = (0, 0)
    """Lowest compute capability of a card that has the products."""

    @abstractmethod
    def check(self) -> str | None:
        """Return None if the needed packages and hardware are there, else what is missing and how to get it."""

    @abstractmethod
    def convert(self, name: str, module: nn.Linear, device: torch.device) -> nn.Module:
        """Return a frozen, quantised layer on ``device`` that replaces a linear one.

        Called while the model is loaded, layer by layer, as soon as a layer's weights are on the device; the original
        layer is freed afterwards. The result must be a linear module to adapters, and its ``to()`` must move it.

        Args:
            name: The layer's full name in the model.
            device: The training device, or the CPU with ``quantize_via: cpu``.
        """

    def before_training(self, denoiser: nn.Module, device: torch.device) -> None:
        """Add what only training needs; called once, when the model and its adapter are loaded.

        Args:
            denoiser: Its layers are on ``device``, but those of swapped blocks, which must be left as they are.
        """
        return

    def bytes_of_weight(self) -> float | None:
        """Return :attr:`weight_bytes` in training, with what :meth:`before_training` adds."""
        return self.weight_bytes
