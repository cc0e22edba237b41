"""Linear layers with one input, called together: their LoRA adapters share a product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def outputs_of(layers: Sequence[Callable[[Tensor], Tensor]], input: Tensor) -> list[Tensor]:
    """Return each layer's output for one input, as if they were called one by one.

    In a compiled block, layers of the adapter `standard` multiply the input by all their matrices A at once: that
    product, and its gradient, take as long as reading the input, however few rows A has (docs/log.md).

    Args:
        layers: As the model names them; whatever is no plain LoRA layer is called.
        input: [..., features].
    """
    import torch

    loras = [_plain_lora(layer) for layer in layers] if torch.compiler.is_compiling() else []
    if len(loras) < 2 or not all(loras):
        return [layer(input) for layer in layers]
    downs = [lora.down for lora in loras if lora]
    inner = torch.nn.functional.linear(input.to(downs[0].dtype), torch.cat(downs))
    parts = torch.split(inner, [len(down) for down in downs], dim=-1)
    return [lora.output(input, part) for lora, part in zip(loras, parts, strict=True) if lora]


@dataclass(frozen=True, kw_only=True)
class _PlainLora:
    """A layer that adds ``strength * B(A(input))`` to what it wraps, and no more."""

    base: nn.Module
    down: Tensor
    """A, [rank, features]."""
    up: nn.Module
    strength: float

    def output(self, input: Tensor, inner: Tensor) -> Tensor:
        """Return the layer's output; ``inner`` is the product with A."""
        of_base: Tensor = self.base(input)
        output: Tensor = (of_base + self.up(inner) * self.strength).to(of_base.dtype)
        return output


def _plain_lora(layer: Any) -> _PlainLora | None:
    from peft.tuners.lora.layer import Linear
    from torch import nn

    from difftrain.model.low_rank.started import StartedDown

    if type(layer) is not Linear or layer.disable_adapters or layer.merged or layer.lora_variant:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or not isinstance(layer.lora_dropout[active[0]], nn.Identity):
        return None
    (name,) = active
    first, up = layer.lora_A[name], layer.lora_B[name]
    down = first.whole() if isinstance(first, StartedDown) else first.weight
    return _PlainLora(base=layer.base_layer, down=down, up=up, strength=layer.scaling[name])
